//! Checks of Customer.io: mode, credentials and region. They send no personal data.

use std::sync::Arc;

use secrecy::ExposeSecret;

use super::{Account, BreakerConfig, Config, CustomerIo, Error, client::display_url};
use crate::runtime::{certificate::tls_fix, check::CheckResult, metrics::Metrics, tls};

const SET_CREDENTIALS: &str =
    "set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY to the Track API credentials of the workspace";

/// Reports whether jobs are sent. With neither credential the service is in mock mode, which passes
/// with a warning if `mock_is_allowed`.
pub fn check_mode(config: &Config, mock_is_allowed: bool) -> CheckResult {
    const MOCK: &str = "mock mode: no calls are made, and every job counts as accepted";
    let is_empty = |text: &str| text.trim().is_empty();
    let missing = match (is_empty(&config.site_id), is_empty(config.api_key.expose_secret())) {
        (false, false) => return CheckResult::passed("mode", "live"),
        (true, false) if !config.allow_mock => "CUSTOMERIO_SITE_ID",
        (false, true) if !config.allow_mock => "CUSTOMERIO_API_KEY",
        _ if mock_is_allowed => return CheckResult::warning("mode", MOCK, SET_CREDENTIALS),
        _ => {
            let fix = format!("{SET_CREDENTIALS}; doctor --allow-mock accepts mock mode");
            return CheckResult::failed("mode", MOCK, fix);
        }
    };
    CheckResult::failed(
        "mode",
        format!("{missing} is missing, so nothing is consumed"),
        format!("set {missing}, or customerio.allow_mock = true for mock mode"),
    )
}

/// Checks that Customer.io accepts the credentials and keeps the account's data in the configured
/// region. `None` if a credential is missing, which [`check_mode`] reports.
pub async fn check(
    config: &Config,
    tls: &tls::Config,
    breaker: BreakerConfig,
) -> Option<CheckResult> {
    let failed = |detail: String, fix: String| CheckResult::failed("credentials", detail, fix);
    let client = match CustomerIo::new(config, tls, breaker, Arc::new(Metrics::default())) {
        Ok(client) => client,
        Err(error @ Error::Credentials) => {
            return Some(failed(error.to_string(), SET_CREDENTIALS.to_owned()));
        }
        Err(error) => {
            return Some(failed(error.to_string(), format!("correct it, or {}", unset())));
        }
    };
    let url = match config.track_url.as_str() {
        "" => config.region.track_url().to_owned(),
        url => display_url(url),
    };
    Some(match client.account().await {
        Account::Mock => return None,
        Account::Refused => failed("the credentials are refused".to_owned(), credentials_fix()),
        Account::NoAnswer(reason) => {
            let fix = no_answer_fix(&reason, &url);
            failed(reason, fix)
        }
        Account::Other { status } => {
            failed(format!("{url} answers with status {status}"), other_fix(status))
        }
        Account::Accepted { region } if !config.region.is(&region) => failed(
            format!("the workspace is in the region {region:?}"),
            format!("set CUSTOMERIO_REGION={region}"),
        ),
        Account::Accepted { region } => {
            CheckResult::passed("credentials", format!("accepted in the region {region:?}"))
        }
    })
}

fn unset() -> String {
    "unset CUSTOMERIO_TRACK_URL to use Customer.io itself".to_owned()
}

fn credentials_fix() -> String {
    format!("{SET_CREDENTIALS}, under Settings, API Credentials, Tracking")
}

fn no_answer_fix(reason: &str, url: &str) -> String {
    if let Some(fix) = tls_fix(reason, url, "tls.ca_file", None) {
        return fix;
    }
    if reason.contains("dns error") {
        return format!("let this machine resolve the host of {url}, or {}", unset());
    }
    format!("allow connections from this machine to {url}, or set CUSTOMERIO_TRACK_URL")
}

fn other_fix(status: u16) -> String {
    match status {
        408 | 429 | 500..=599 => {
            "wait until Customer.io works again (status.customer.io), then repeat this".to_owned()
        }
        _ => format!("set CUSTOMERIO_TRACK_URL to the address of a Track API, or {}", unset()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fix_of_a_missing_answer_follows_its_cause() {
        let fix = |reason| no_answer_fix(reason, "https://x");
        assert!(fix("no connection: dns error: no such host").contains("resolve the host"));
        assert!(fix("invalid peer certificate: UnknownIssuer").starts_with("set tls.ca_file"));
        assert!(fix("connection refused").starts_with("allow connections from this machine"));
        assert!(other_fix(503).contains("status.customer.io"));
        assert!(other_fix(200).starts_with("set CUSTOMERIO_TRACK_URL"));
    }
}
