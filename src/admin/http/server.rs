//! Accepts connections: limits their number, and the time for the head of a request.
//!
//! `middleware` limits the time for the body and the response.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, StatusCode, header::CONNECTION},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::ServiceExt;

use crate::{
    admin::{
        http::{
            connections::{ActiveBody, Activity, ConnectionLimit},
            stream::HttpStream,
        },
        state::Config,
    },
    runtime::shutdown::Shutdown,
};

/// Maximum size of the head of a request. A larger one is answered with 431.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Maximum time for the head of a request over a connection of the reserve.
const RESERVE_HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after `accept` failed, for example because no file descriptor is left.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(200);

/// Serves requests until the service ends, then finishes the requests in flight. Dropping the
/// future aborts them.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    shutdown: Shutdown,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_header_size(HEAD_BYTES_MAX);
    let mut reserve = http.clone();
    reserve.header_read_timeout(config.header_timeout.min(RESERVE_HEADER_TIMEOUT));
    let limit = ConnectionLimit::new(config.connections);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.ended() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting an HTTP connection failed, retrying");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        let permit = tokio::select! {
            () = shutdown.ended() => break,
            permit = limit.permit() => permit,
        };
        let http = if permit.is_reserve { &reserve } else { &http };
        let connection = HttpConnection {
            http: http.clone(),
            peer,
            router: router.clone(),
            activity: limit.activity(),
            is_reserve: permit.is_reserve,
            shutdown: shutdown.clone(),
        };
        connections.spawn(async move {
            connection.serve(stream).await;
            drop(permit);
        });
    }
    while connections.join_next().await.is_some() {}
}

/// What one connection is served with.
struct HttpConnection {
    http: http1::Builder,
    peer: SocketAddr,
    router: Router,
    activity: Arc<Activity>,
    /// Whether the connection ends after one request.
    is_reserve: bool,
    shutdown: Shutdown,
}

impl HttpConnection {
    /// Serves the connection until it ends, or becomes a WebSocket.
    async fn serve(self, stream: TcpStream) {
        let Self { http, peer, router, activity, is_reserve, shutdown } = self;
        // Otherwise a small response may wait for the peer's delayed acknowledgement. A failure has
        // no other effect.
        let _ = stream.set_nodelay(true);
        let stream = TokioIo::new(HttpStream::new(stream, activity.clone()));
        let of_request = activity.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            of_request.work();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            let (response, activity) = (router.clone().oneshot(request), of_request.clone());
            async move {
                let mut response =
                    response.await.unwrap_or_else(|never: Infallible| match never {});
                if is_reserve && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response.map(|body| ActiveBody::new(body, activity)))
            }
        });
        let mut connection = http.serve_connection(stream, service).with_upgrades();
        let stopped = async {
            tokio::select! {
                () = shutdown.ended() => {}
                () = activity.closing() => {}
            }
        };
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stopped => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        activity.end();
        let Err(error) = ended else { return };
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
        // An idle connection is closed without a response, as clients expect.
        if error.is_timeout()
            && let Some(parts) = connection.into_parts()
            && !parts.read_buf.is_empty()
        {
            parts.io.into_inner().refuse(StatusCode::REQUEST_TIMEOUT).await;
        }
    }
}
