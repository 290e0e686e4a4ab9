//! Requests to the admin API.

use customerio_sync::{admin::API_PREFIX, app::App};
use serde_json::Value;

use super::World;

impl World {
    /// Sends a request to the admin API. Returns the status and the JSON of the response.
    pub(crate) async fn api(
        &self,
        app: &App,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let url = format!("http://{}{API_PREFIX}{path}", app.http_addr());
        let mut request = self.http.request(method.parse().expect("a method"), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("the service answers");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (
            status,
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{method} {path}: {error}: {text}")),
        )
    }

    /// Sends a GET request that has to succeed.
    pub(crate) async fn read(&self, app: &App, path: &str) -> Value {
        let (status, response) = self.api(app, "GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {response}");
        response
    }

    /// Sends a POST request that has to succeed.
    pub(crate) async fn act(&self, app: &App, path: &str, body: Option<&Value>) -> Value {
        let (status, response) = self.api(app, "POST", path, body).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {response}");
        response
    }
}
