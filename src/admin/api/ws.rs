//! `GET /api/v1/signups/customerio/ws`: outcomes and the progress of bulk retries, a text frame
//! each.

use std::time::Duration;

use axum::{
    extract::{
        State,
        ws::{
            CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::StatusCode,
    response::Response,
};
use tokio::time::{Instant, interval, timeout};

use crate::{
    admin::{
        http::problem::{Problem, Problems},
        state::AppState,
    },
    flows::feed::Watcher,
    runtime::shutdown::Lifecycle,
};

/// How often a client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long a client may be silent, and how long one frame may take to be taken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a client's frame at most; nothing is expected of it.
const MAX_FRAME_BYTES: usize = 4096;

/// Watch outcomes as they happen.
///
/// Each outcome message is one text frame, whichever replica did the work; `/asyncapi.json`
/// describes the frames. A client that reads slowly gets a frame `feed.missed` with the number of
/// frames that it missed.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/ws", operation_id = "watchOutcomes", tag = "overview",
    responses(
        (status = 101, description = "Switching to WebSocket."),
        (status = 426, description = "Not a WebSocket \
            request.", body = Problem, content_type = "application/problem+json"),
        Problems,
    )
)]
pub(crate) async fn watch(
    State(state): State<AppState>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|error| {
        let status = error_status(&error);
        Problem::new(status, format!("expected a WebSocket handshake (RFC 6455): {error}"))
    })?;
    let ready = state.ready()?;
    let permit = state.websockets.clone().try_acquire_owned().map_err(|_| {
        let most = state.config.websocket_clients;
        Problem::unavailable(format!(
            "{most} clients are connected, as many as are allowed; try again later"
        ))
    })?;
    let watcher = ready.feed.watch().await;
    let lifecycle = state.lifecycle.clone();
    let upgrade = upgrade.max_frame_size(MAX_FRAME_BYTES).max_message_size(MAX_FRAME_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        serve(socket, watcher, lifecycle).await;
        drop(permit);
    }))
}

fn error_status(error: &WebSocketUpgradeRejection) -> StatusCode {
    match error {
        WebSocketUpgradeRejection::InvalidConnectionHeader(_)
        | WebSocketUpgradeRejection::InvalidUpgradeHeader(_)
        | WebSocketUpgradeRejection::ConnectionNotUpgradable(_) => StatusCode::UPGRADE_REQUIRED,
        _ => StatusCode::BAD_REQUEST,
    }
}

async fn serve(mut socket: WebSocket, mut watcher: Watcher, lifecycle: Lifecycle) {
    let mut pings = interval(PING_EVERY);
    let mut heard = Instant::now();
    loop {
        let message = tokio::select! {
            () = lifecycle.draining() => {
                let reason = Utf8Bytes::from_static("the service is stopping");
                let _ = socket.send(Message::Close(Some(CloseFrame { code: close_code::AWAY,
                reason }))).await;
                return;
            }
            frame = watcher.next() => match frame.map(Utf8Bytes::try_from) {
                Some(Ok(text)) => Message::Text(text),
                // What others publish to the exchange is not ours to answer for.
                Some(Err(_)) => continue,
                None => return,
            },
            _ = pings.tick() => {
                if heard.elapsed() > PATIENCE {
                    return;
                }
                Message::Ping(axum::body::Bytes::new())
            }
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {
                    heard = Instant::now();
                    continue;
                }
            },
        };
        if !matches!(timeout(PATIENCE, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
}
