//! Accepts connections: limits their number, and the time for the head of a request.
//!
//! `middleware` limits the time for the body and the response.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tower::ServiceExt;

use crate::{admin::state::Config, runtime::shutdown::Shutdown};

/// Maximum size of the head of a request. A larger one is answered with 431.
const HEAD_BYTES_MAX: usize = 32 * 1024;
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
    let permits = Arc::new(Semaphore::new(config.connections));
    let mut connections = JoinSet::new();
    let accepted = async || {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        (listener.accept().await, permit)
    };
    loop {
        let (accepted, permit) = tokio::select! {
            () = shutdown.ended() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served =
                    connection(http.clone(), stream, peer, router.clone(), shutdown.clone());
                connections.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting an HTTP connection failed, retrying");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until it ends, or becomes a WebSocket.
async fn connection(
    http: http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: Shutdown,
) {
    // Otherwise a small response may wait for the peer's delayed acknowledgement. A failure has no
    // other effect.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = router.clone().oneshot(request);
        async move {
            Ok::<_, Infallible>(response.await.unwrap_or_else(|never: Infallible| match never {}))
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.ended() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
    }
}
