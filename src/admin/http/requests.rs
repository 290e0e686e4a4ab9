//! Counts and times the requests, by route.
//!
//! The route is the template of the path, such as `/jobs/{job_id}`, so the number of series does
//! not depend on what clients send. What matches no listed route counts as one route.

#![expect(clippy::disallowed_methods, reason = "an edge: requests are timed")]

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use tokio::time::Instant;

use crate::runtime::metrics::Metrics;

/// The classes of the status of a response. 101 turns the connection into a WebSocket.
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

fn class_of(status: StatusCode) -> &'static str {
    STATUS_CLASSES[usize::from(status.as_u16() / 100).clamp(1, STATUS_CLASSES.len()) - 1]
}

/// The method and the template of the path of a route.
pub(crate) type Route = (Method, String);

/// Route and method of a request that matches no listed route.
const OTHER: &str = "other";

/// The metrics of all requests.
#[derive(Debug, Clone)]
pub(crate) struct RequestMetrics {
    metrics: Arc<Metrics>,
    routes: Arc<[Route]>,
}

impl RequestMetrics {
    /// Creates the series of `routes`.
    pub(crate) fn new(metrics: Arc<Metrics>, routes: Vec<Route>) -> Self {
        let created = Self { metrics, routes: routes.into() };
        let listed = created.routes.iter().map(|(method, path)| (path.as_str(), method.as_str()));
        for (path, method) in listed.chain([(OTHER, OTHER)]) {
            created.metrics.http.duration.with_label_values(&[path, method]);
            for class in STATUS_CLASSES {
                created.metrics.http.requests.with_label_values(&[path, method, class]);
            }
        }
        created
    }

    /// The labels `route` and `method` of a request. A HEAD request is answered like a GET request.
    fn labels(&self, request: &Request) -> [&str; 2] {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        let method = match *request.method() {
            Method::HEAD => "GET",
            ref method => method.as_str(),
        };
        let mut routes = self.routes.iter().map(|(method, path)| [path.as_str(), method.as_str()]);
        routes.find(|labels| *labels == [path, method]).unwrap_or([OTHER, OTHER])
    }

    fn record(&self, [route, method]: [&str; 2], status: StatusCode, duration: Duration) {
        let class = class_of(status);
        self.metrics.http.requests.with_label_values(&[route, method, class]).inc();
        let seconds = duration.as_secs_f64();
        self.metrics.http.duration.with_label_values(&[route, method]).observe(seconds);
    }
}

/// Records each request when its response starts.
pub(crate) async fn measure(
    State(requests): State<RequestMetrics>,
    request: Request,
    next: Next,
) -> Response {
    let labels = requests.labels(&request);
    let started = Instant::now();
    let response = next.run(request).await;
    requests.record(labels, response.status(), started.elapsed());
    response
}
