//! `GET /ws` and `GET /live`: send the frames of a feed, as text frames of a WebSocket.

#![expect(clippy::disallowed_methods, reason = "an edge: the idle time of a connection")]

use std::{pin::pin, time::Duration};

use axum::{
    Extension,
    extract::{
        State,
        ws::{
            CloseCode, CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::StatusCode,
    response::Response,
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, interval, timeout},
};

use crate::{
    admin::{
        http::{
            auth::Identity,
            client_access::ClientAccess,
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    flows::feed::FeedSubscriber,
    runtime::{metrics::GaugeGuard, shutdown::Shutdown},
};

/// Time between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Maximum time without a frame from the client, and maximum time for sending one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for sending a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a frame from the client. It only sends control frames.
const FRAME_BYTES_MAX: usize = 4096;

/// Watch outcomes live.
///
/// Each outcome message is one text frame, whichever replica did the work. `/asyncapi.json`
/// describes the frames. A client that reads too slowly receives a frame `feed.missed` with the
/// number of frames that it missed. There are no other frames. For the role viewer, and in the
/// session of a browser, personal data is masked. When the token is removed, or the session ends,
/// the WebSocket is closed with status 1008.
#[utoipa::path(
    get, path = "/ws", operation_id = "watchOutcomes", tag = "overview",
    responses(
        (status = 101, description = "Switching to WebSocket."),
        (
            status = 426, description = "The request is not a WebSocket handshake.",
            body = Problem, content_type = "application/problem+json",
        ),
        Problems,
    )
)]
pub(crate) async fn outcomes(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let (upgrade, client) = accept(&state, upgrade)?;
    let subscriber = state.connected()?.outcomes.subscribe().await;
    let (access, shutdown) = (ClientAccess::new(state.clone(), identity), state.shutdown);
    Ok(respond(upgrade, client, subscriber, access, shutdown))
}

/// Watch progress live.
///
/// Text frames: the progress of bulk retries, changes of the circuit breaker of the replica that
/// answers, and counts when they have changed. `/asyncapi.json` describes them. A client that reads
/// too slowly receives a frame `feed.missed` with the number of frames that it missed.
#[utoipa::path(
    get, path = "/live", operation_id = "watchProgress", tag = "overview",
    responses(
        (status = 101, description = "Switching to WebSocket."),
        (
            status = 426, description = "The request is not a WebSocket handshake.",
            body = Problem, content_type = "application/problem+json",
        ),
        Problems,
    )
)]
pub(crate) async fn live(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let (upgrade, client) = accept(&state, upgrade)?;
    let (access, subscriber) = (ClientAccess::new(state.clone(), identity), state.live.subscribe());
    Ok(respond(upgrade, client, subscriber, access, state.shutdown))
}

/// One of the permitted clients, until it is dropped.
type CountedClient = (OwnedSemaphorePermit, GaugeGuard);

/// Checks the handshake, and takes a permit for the client.
fn accept(
    state: &AppState,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<(WebSocketUpgrade, CountedClient), Problem> {
    let upgrade = upgrade.map_err(|error| {
        let status = error_status(&error);
        Problem::new(status, format!("expected a WebSocket handshake (RFC 6455): {error}"))
    })?;
    let permit = state.websockets.clone().try_acquire_owned().map_err(|_| {
        let clients_max = state.config.websocket_clients;
        Problem::unavailable(format!(
            "{clients_max} clients are connected, the maximum; retry later"
        ))
    })?;
    let counted = GaugeGuard::new(&state.metrics.http.websocket_clients);
    Ok((upgrade, (permit, counted)))
}

fn respond(
    upgrade: WebSocketUpgrade,
    client: CountedClient,
    subscriber: FeedSubscriber,
    access: ClientAccess,
    shutdown: Shutdown,
) -> Response {
    let upgrade = upgrade.max_frame_size(FRAME_BYTES_MAX).max_message_size(FRAME_BYTES_MAX);
    upgrade.on_upgrade(async move |socket| {
        serve(socket, subscriber, access, shutdown).await;
        drop(client);
    })
}

fn error_status(error: &WebSocketUpgradeRejection) -> StatusCode {
    match error {
        WebSocketUpgradeRejection::InvalidConnectionHeader(_)
        | WebSocketUpgradeRejection::InvalidUpgradeHeader(_)
        | WebSocketUpgradeRejection::ConnectionNotUpgradable(_) => StatusCode::UPGRADE_REQUIRED,
        _ => StatusCode::BAD_REQUEST,
    }
}

async fn serve(
    mut socket: WebSocket,
    mut subscriber: FeedSubscriber,
    access: ClientAccess,
    shutdown: Shutdown,
) {
    let mut access_ended = pin!(access.ended());
    let mut pings = interval(PING_INTERVAL);
    let mut last_received = Instant::now();
    loop {
        let message = tokio::select! {
            // The end of the access comes before further frames.
            biased;
            () = shutdown.draining() => {
                return close(socket, close_code::AWAY, "the service is stopping").await;
            }
            reason = access_ended.as_mut() => {
                return close(socket, close_code::POLICY, reason).await;
            }
            frame = subscriber.next() => match frame {
                Some(frame) => match access.frame(frame).map(Utf8Bytes::try_from) {
                    Some(Ok(text)) => Message::Text(text),
                    // Frames are JSON, so this does not happen.
                    Some(Err(_)) | None => continue,
                },
                None => return,
            },
            _ = pings.tick() => {
                if last_received.elapsed() > IDLE_TIMEOUT {
                    return;
                }
                Message::Ping(axum::body::Bytes::new())
            }
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {
                    last_received = Instant::now();
                    continue;
                }
            },
        };
        // A client that does not read is disconnected without a close frame.
        let is_sent = tokio::select! {
            sent = timeout(IDLE_TIMEOUT, socket.send(message)) => matches!(sent, Ok(Ok(()))),
            _ = access_ended.as_mut() => return,
        };
        if !is_sent {
            return;
        }
    }
}

/// Closes the connection with a reason.
async fn close(mut socket: WebSocket, code: CloseCode, reason: &'static str) {
    let reason = Utf8Bytes::from_static(reason);
    let close = Message::Close(Some(CloseFrame { code, reason }));
    // The client may not read, or be gone.
    let _ = timeout(CLOSE_TIMEOUT, socket.send(close)).await;
}
