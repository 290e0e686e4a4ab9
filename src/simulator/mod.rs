//! A simulator of Customer.io's Track API, v1 and v2, as the public documentation describes it
//! (<https://docs.customer.io/integrations/api/track/>). Faults are scripted under `/_sim/`.
//!
//! It keeps what it received in memory: people with their attributes, tracked events with the
//! number of repeats, and calls.

#![expect(clippy::disallowed_methods, reason = "an edge: the simulator records when calls arrive")]

mod control;
mod faults;
mod store;
mod v1;
mod v2;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header::AUTHORIZATION},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use base64::Engine;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt;

pub use faults::Fault;
use faults::{Effect, Faults, Injection};
use store::Store;

/// A running simulator. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

/// The state that the handlers share.
type Sim = axum::extract::State<Arc<Shared>>;

#[derive(Debug, Default)]
struct Shared {
    store: Store,
    faults: Faults,
}

/// Marks a response that is not sent: the connection is reset instead.
#[derive(Debug, Clone, Copy)]
struct ResetConnection;

/// Ids of the tracked events in a batch.
#[derive(Debug, Clone, Default)]
struct EventIds(Vec<String>);

impl Simulator {
    /// Starts a simulator on `addr` with scripted `faults`. Fails if it cannot listen there.
    pub async fn start(addr: SocketAddr, faults: Vec<Fault>) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        for fault in faults {
            shared.faults.add(fault);
        }
        let router = router(shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(connection(stream, router.clone()));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr, _tasks: tasks })
    }

    /// Address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

fn router(shared: Arc<Shared>) -> Router {
    let api = Router::new()
        .route("/api/v1/accounts/region", get(v1::region))
        .route("/api/v1/customers/{id}", put(v1::identify).delete(v1::delete))
        .route("/api/v1/customers/{id}/events", post(v1::track))
        .route("/api/v2/entity", post(v2::entity))
        .route("/api/v2/batch", post(v2::batch))
        // The last layer is the outermost: faults affect unauthenticated calls as well, and every
        // call is recorded.
        .route_layer(from_fn_with_state(shared.clone(), authenticate))
        .route_layer(from_fn_with_state(shared.clone(), inject_faults));
    api.merge(control::router()).with_state(shared)
}

/// Serves one connection. A response marked [`ResetConnection`] resets it.
async fn connection(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = stream.into_std() else { return };
    let Ok(handle) = stream.try_clone() else { return };
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let service =
        hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let response = router.clone().oneshot(request.map(Body::new));
            let handle = handle.try_clone();
            async move {
                let response = response.await.unwrap_or_else(|never: Infallible| match never {});
                if response.extensions().get::<ResetConnection>().is_none() {
                    return Ok(response);
                }
                if let Ok(handle) = handle {
                    // With no time to linger, closing sends a reset (RFC 9293, section 3.10.4).
                    let _ = socket2::SockRef::from(&handle).set_linger(Some(Duration::ZERO));
                }
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }
        });
    let http = hyper::server::conn::http1::Builder::new();
    // Fails if the client closes the connection, and after an intended reset. Neither matters here.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

/// Requires basic authentication. Any site id and key are valid, unless one is empty.
async fn authenticate(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let credentials = header.and_then(|value| value.strip_prefix("Basic ")).and_then(|encoded| {
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
    });
    let is_valid = credentials.is_some_and(|text| {
        text.split_once(':').is_some_and(|(site, key)| !site.is_empty() && !key.is_empty())
    });
    if is_valid {
        return next.run(request).await;
    }
    let _ = shared;
    (StatusCode::UNAUTHORIZED, Json(json!({ "meta": { "error": "Unauthorized request" } })))
        .into_response()
}

/// Injects the scripted faults, and records the call.
async fn inject_faults(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let (latency, injection) = shared.faults.next(&path);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let (events, response) = match injection {
        None => {
            let response = next.run(request).await;
            (response.extensions().get::<EventIds>().cloned().unwrap_or_default(), response)
        }
        Some(Injection { effect, processed }) => {
            // Read the request before the fault, as a real server does.
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
            let events = v2::event_ids(&body);
            if processed {
                next.run(Request::from_parts(parts, body.into())).await;
            }
            (events, effect.into_response())
        }
    };
    let is_reset = response.extensions().get::<ResetConnection>().is_some();
    shared.store.record_call(path, (!is_reset).then(|| response.status().as_u16()), events.0);
    response
}

impl IntoResponse for Effect {
    fn into_response(self) -> Response {
        match self {
            Self::Reset => {
                let mut response = StatusCode::OK.into_response();
                response.extensions_mut().insert(ResetConnection);
                response
            }
            Self::Endless => {
                let spaces = futures_util::stream::unfold((), |()| async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
                });
                Body::from_stream(spaces).into_response()
            }
            Self::Truncated => {
                let pieces = [
                    Ok(Bytes::from_static(b"{\"errors\":[")),
                    Err(std::io::ErrorKind::ConnectionReset),
                ];
                let pieces = pieces.map(|piece| piece.map_err(std::io::Error::from));
                Body::from_stream(futures_util::stream::iter(pieces)).into_response()
            }
            Self::Status { status, retry_after, body } => {
                let mut response = (status, body).into_response();
                if let Some(value) = retry_after.and_then(|value| value.parse().ok()) {
                    response.headers_mut().insert("retry-after", value);
                }
                response
            }
        }
    }
}

/// The API's response to an accepted request: an empty object and a newline.
fn accepted() -> Response {
    ([("content-type", "application/json; charset=utf-8")], "{}\n").into_response()
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [("content-type", "application/json; charset=utf-8")], format!("{body}\n"))
        .into_response()
}
