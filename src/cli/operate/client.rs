//! Client of the admin API.

use std::time::Duration;

use reqwest::{Method, header};
use serde_json::Value;

use super::{Error, ServiceArgs};
use crate::admin::API_PREFIX;

/// Maximum duration of a request. Longer than the service's own default limit
/// (`http.request_timeout`), so that its error response arrives.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    json: bool,
}

impl Client {
    pub(super) fn new(connection: ServiceArgs) -> Result<Self, Error> {
        // The provider is process-wide. An error means that it is already installed.
        crate::runtime::tls::install_crypto_provider();
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let http =
            http.map_err(|error| Error::Other(format!("building an HTTP client: {error}")))?;
        let base = format!("{}{API_PREFIX}", connection.url.trim_end_matches('/'));
        Ok(Self { http, base, token: connection.token, json: connection.json })
    }

    pub(super) async fn get(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
    ) -> Result<Value, Error> {
        self.send(Method::GET, path, query, None).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        query: &[(&str, Option<String>)],
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        self.send(Method::POST, path, query, body).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, Option<String>)],
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        pairs.extend_pairs(query.iter().filter_map(|(key, value)| Some((key, value.as_deref()?))));
        let mut request =
            self.http.request(method, format!("{}{path}?{}", self.base, pairs.finish()));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request =
                request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let failed = |error: reqwest::Error| {
            Error::Other(format!("requesting {}: {}", self.base, causes(&error)))
        };
        let response = request.send().await.map_err(failed)?;
        let status = response.status();
        let text = response.text().await.map_err(failed)?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() && !value.is_null() {
            return Ok(value);
        }
        let detail = value["detail"]
            .as_str()
            .unwrap_or("the response is not from customerio-sync; check the URL");
        Err(Error::Other(format!("{status}: {detail}")))
    }

    /// Prints a response as JSON if `--json` is given, else as the text that `format` returns.
    pub(super) fn show(&self, response: &Value, format: impl FnOnce(&Value) -> String) {
        if self.json {
            println!("{response:#}");
        } else {
            println!("{}", format(response));
        }
    }
}

/// Describes the causes of an error. Leaves out the URL, whose query may contain personal data that
/// somebody searched for.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::from("no answer");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
