//! The admin API, asked from a terminal.

use std::time::Duration;

use reqwest::{Method, header};
use serde_json::Value;

use super::{Connection, Error};

/// Longer than the service lets a request take by default.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    json: bool,
}

impl Client {
    pub(super) fn new(connection: Connection) -> Result<Self, Error> {
        // The provider is the process's; a second client finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(TIMEOUT).build();
        let http = http.map_err(|error| Error::Other(format!("making an HTTP client: {error}")))?;
        let base = format!("{}/api/v1/signups/customerio", connection.url.trim_end_matches('/'));
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
            Error::Other(format!("asking {}: {}", self.base, causes(&error)))
        };
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let text = answer.text().await.map_err(failed)?;
        let value: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_success() && !value.is_null() {
            return Ok(value);
        }
        let told = value["detail"]
            .as_str()
            .unwrap_or("the answer is not one of customerio-sync; is the URL right?");
        Err(Error::Other(format!("{status}: {told}")))
    }

    /// Prints the answer as JSON, or what `table` makes of it.
    pub(super) fn show(&self, answer: &Value, table: impl FnOnce(&Value) -> String) {
        if self.json {
            println!("{answer:#}");
        } else {
            println!("{}", table(answer));
        }
    }
}

/// The error with its causes, without the URL, whose query may hold what somebody searched for.
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
