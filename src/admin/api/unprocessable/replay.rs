//! `POST /unprocessable/{id}/replay` and `POST /unprocessable/replay`: publishes one unprocessable
//! message, or all of a selection, again, unchanged.

use axum::{
    Extension, Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::{
            publish::{PublishStatus, publish_once},
            sync_failures::retry::DryRunParameters,
            unprocessable::{dry_run::MessageDryRun, list::unknown},
        },
        http::{
            auth::Identity,
            extract::{self, NoParameters, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    flows::bulk_action::{replay_of, replay_sources},
    ledger::{BulkAction, MessageResolution, MessageSelection, OpenMessage},
};

/// Where the message was published to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    id: Uuid,
    /// Always the default exchange.
    exchange: &'static str,
    /// The work queue that the message came from.
    routing_key: &'static str,
}

/// Publish a message again, to the work queue that it came from and to no other queue.
///
/// If it is still unprocessable, it appears again with a new id.
#[utoipa::path(
    post, path = "/unprocessable/{failureId}/replay",
    operation_id = "replayUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")),
    responses(
        (status = 200, body = Replayed),
        (
            status = 409, description = "The message came from no work queue of this service.",
            body = Problem, content_type = "application/problem+json",
        ),
        Problems,
    )
)]
pub(crate) async fn replay(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<Replayed>, Problem> {
    let connected = state.connected()?;
    let message = state.ledger.open_message(id).await?.ok_or_else(unknown)?;
    let refusal = from_elsewhere(&message);
    let (queue, message) = replay_of(message).ok_or(refusal)?;
    // A crash after the publish leaves the message in the list. A second replay changes nothing.
    if publish_once(&connected.publisher, &message).await == PublishStatus::Pending {
        return Err(Problem::unavailable(
            "RabbitMQ did not confirm the message, so it stays in the list; retry when /readyz \
                returns 200",
        ));
    }
    // If another operator resolved it meanwhile, the replay is still done.
    state.ledger.resolve_unprocessable(id, MessageResolution::Replayed, &identity.name).await?;
    Ok(Json(Replayed { id, exchange: "", routing_key: queue.name() }))
}

fn from_elsewhere(message: &OpenMessage) -> Problem {
    let detail = format!(
        "the message came from exchange {:?} with routing key {:?}, which belong to no work queue \
            of this service, so it can't be replayed; ask its publisher to publish it again, and \
            dismiss this message",
        message.exchange, message.routing_key
    );
    Problem::new(StatusCode::CONFLICT, detail)
}

/// Replay all messages of a selection that came from a work queue.
///
/// Returns at once. The replay proceeds at a limited rate, survives restarts of the service, and
/// can be shown and cancelled as a bulk action. Without a filter, every open message is selected.
#[utoipa::path(
    post, path = "/unprocessable/replay", operation_id = "replayAllUnprocessable",
    tag = "bulk", params(DryRunParameters),
    request_body = MessageSelection,
    responses(
        (status = 200, description = "With dryRun, the preview.", body = MessageDryRun),
        (status = 202, description = "The bulk action was created.", body = BulkAction),
        Problems,
    )
)]
pub(crate) async fn replay_all(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<DryRunParameters>,
    extract::Json(selection): extract::Json<MessageSelection>,
) -> Result<Response, Problem> {
    let sources = replay_sources();
    if parameters.dry_run {
        let preview = state.ledger.preview_messages(&selection, Some(&sources)).await?;
        return Ok(Json(MessageDryRun::from(preview)).into_response());
    }
    let action = state.ledger.replay_messages(&selection, &sources, &identity.name).await?;
    Ok((StatusCode::ACCEPTED, Json(action)).into_response())
}
