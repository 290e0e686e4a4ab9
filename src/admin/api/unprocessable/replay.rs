//! `POST /unprocessable/{id}/replay`: publishes an unprocessable message again, unchanged.

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::{
            publish::{PublishStatus, publish_once},
            unprocessable::list::unknown,
        },
        http::{
            auth::Identity,
            extract::{NoParameters, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    broker::{Message, Origin, OriginalMessage, headers},
    ledger::MessageResolution,
};

/// Where the message was published to.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    id: Uuid,
    exchange: String,
    routing_key: String,
}

/// Publish a message again. If it is still unprocessable, it appears again with a new id.
#[utoipa::path(
    post, path = "/unprocessable/{failureId}/replay",
    operation_id = "replayUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")),
    responses((status = 200, body = Replayed), Problems)
)]
pub(crate) async fn replay(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<Replayed>, Problem> {
    let connected = state.connected()?;
    let message = state.ledger.unprocessable_message(id).await?.ok_or_else(unknown)?;
    let origin = Origin { exchange: &message.exchange, routing_key: &message.routing_key };
    let original = OriginalMessage {
        message_id: message.headers.get(headers::ORIGINAL_MESSAGE_ID).and_then(|id| id.as_str()),
        content_type: message.content_type.as_deref(),
        body: message.body.clone(),
    };
    // A crash after the publish leaves the message in the list. A second replay changes nothing.
    if publish_once(&connected.publisher, &Message::replay(id, origin, original)).await
        == PublishStatus::Pending
    {
        return Err(Problem::unavailable(
            "RabbitMQ did not confirm the message, so it stays in the list; retry when /readyz \
                returns 200",
        ));
    }
    // If another operator resolved it meanwhile, the replay is still done.
    state.ledger.resolve_unprocessable(id, MessageResolution::Replayed, &identity.name).await?;
    Ok(Json(Replayed { id, exchange: message.exchange, routing_key: message.routing_key }))
}
