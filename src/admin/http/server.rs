//! Takes connections: so many at the same time, and none that dawdles over the head of a request.
//!
//! How long a body and its answer may take is bounded a request at a time, in `guard`.

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

use crate::{admin::state::Config, runtime::shutdown::Lifecycle};

/// Bytes of a request's head at most. What is longer is answered 431.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Pause after the system refused a connection, as it does when no file descriptor is left.
const AFTER_REFUSAL: Duration = Duration::from_millis(200);

/// Serves until everything has to end, and then until the requests under way are answered. Who
/// stops waiting for it cuts them off.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    config: &Config,
    lifecycle: Lifecycle,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_header_size(MAX_HEAD_BYTES);
    let places = Arc::new(Semaphore::new(config.connections));
    let mut connections = JoinSet::new();
    let accepted = async || {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        (listener.accept().await, place)
    };
    loop {
        let (accepted, place) = tokio::select! {
            () = lifecycle.ended() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accepted() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served =
                    connection(http.clone(), stream, peer, router.clone(), lifecycle.clone());
                connections.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be taken");
                tokio::time::sleep(AFTER_REFUSAL).await;
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
    lifecycle: Lifecycle,
) {
    // Without it, small answers may wait for the peer's delayed acknowledgement. Failing costs no
    // more than that.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answered = router.clone().oneshot(request);
        async move {
            Ok::<_, Infallible>(answered.await.unwrap_or_else(|never: Infallible| match never {}))
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = lifecycle.ended() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection ended early");
    }
}
