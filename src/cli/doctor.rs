//! `customerio-sync doctor`: one line per check, with the fix if it fails. It changes nothing.

use secrecy::ExposeSecret;
use serde_json::json;

use super::Error;
use crate::{
    broker::{self, Address, Topology},
    config::{self, Config},
    customerio,
    ledger::Ledger,
    runtime::{
        check::{CheckResult, CheckStatus},
        telemetry,
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of lines.
    #[arg(long)]
    json: bool,
    /// Accept mock mode with a warning.
    #[arg(long)]
    allow_mock: bool,
}

/// Keeps log lines out of the report, unless `RUST_LOG` asks for them.
pub(super) fn quiet(telemetry: &mut telemetry::Config) {
    if std::env::var_os("RUST_LOG").is_none_or(|filter| filter.is_empty()) {
        telemetry.log = "off".to_owned();
    }
}

/// Reports an invalid configuration, which no other check can be made with.
pub(super) fn report_configuration(args: &Args, error: &config::Error) {
    let fix = "correct it; config/default.toml describes every key";
    print(args, &[CheckResult::failed("configuration", error.to_string(), fix)]);
}

/// Prints the results, and returns the number of failed checks.
fn print(args: &Args, results: &[CheckResult]) -> usize {
    let failed = results.iter().filter(|result| result.status == CheckStatus::Failed).count();
    if args.json {
        println!("{}", json!({ "checks": results, "ok": failed == 0 }));
    } else {
        results.iter().for_each(|result| println!("{result}"));
    }
    failed
}

/// Checks everything that the service needs. Fails if any check failed; a warning does not count.
pub(super) async fn run(config: &Config, args: Args) -> Result<(), Error> {
    let mut results = configuration(config);
    results.extend(config.certificate_files().check());
    results.push(customerio::check_mode(&config.customerio, args.allow_mock));
    let (database, broker, credentials) = tokio::join!(
        database(config),
        broker(config),
        customerio::check(&config.customerio, &config.tls, config.breaker.clone())
    );
    results.extend(database.into_iter().chain(broker).chain(credentials));
    match print(&args, &results) {
        0 => Ok(()),
        1 => Err(Error::Other("1 problem found".to_owned())),
        failed => Err(Error::Other(format!("{failed} problems found"))),
    }
}

/// Old names of keys; an invalid configuration is reported by [`report_configuration`].
fn configuration(config: &Config) -> Vec<CheckResult> {
    const NAME: &str = "configuration";
    if config.renamed.is_empty() {
        return vec![CheckResult::passed(NAME, "")];
    }
    let warn = |renamed: &config::RenamedKey| {
        let (key, present, from) = (renamed.key, renamed.present, &renamed.from);
        let detail = format!("the key {key:?} in {from} has another name now");
        CheckResult::warning(NAME, detail, format!("rename it to {present:?}"))
    };
    config.renamed.iter().map(warn).collect()
}

async fn database(config: &Config) -> Vec<CheckResult> {
    const NAME: &str = "database";
    if let Err(error) = config.require_database() {
        return vec![CheckResult::failed(NAME, "DATABASE_URL is not set", error.to_string())];
    }
    match Ledger::new(&config.database, &config.tls, config.retry.delays.max_attempts()) {
        Ok(ledger) => {
            let results = ledger.check(config.database.migrate).await;
            ledger.close().await;
            results
        }
        Err(error) => vec![CheckResult::failed(
            NAME,
            error.to_string(),
            "set DATABASE_URL to an URL such as postgres://user:password@host:5432/name, with \
                special characters percent-encoded",
        )],
    }
}

async fn broker(config: &Config) -> Vec<CheckResult> {
    if let Err(error) = config.require_broker() {
        return vec![CheckResult::failed("broker", "AMQP_URL is not set", error.to_string())];
    }
    let address = match Address::new(&config.broker, &config.tls) {
        Ok(address) => address,
        Err(error) => {
            let fix = "set AMQP_URL to an URL such as amqp://user:password@host:5672/vhost, with \
                special characters percent-encoded";
            return vec![CheckResult::failed("broker", error.to_string(), fix)];
        }
    };
    let topology = Topology::new(&config.retry.delays, &config.topology);
    let has_management_api = !config.broker.management_api.expose_secret().is_empty();
    let (mut results, managed) = tokio::join!(
        broker::check(&address, &topology, has_management_api),
        broker::check_management(&config.broker, &config.tls, &topology, config.sync.hold)
    );
    results.extend(managed);
    results
}
