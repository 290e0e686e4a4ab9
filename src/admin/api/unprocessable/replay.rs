//! `POST /api/v1/signups/customerio/unprocessable/{id}/replay`: publishes a message that could not
//! be understood again, as it came.

use axum::{Extension, Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::{
            publish::{Published, publish_once},
            unprocessable::list::unknown,
        },
        http::{
            auth::Identity,
            extract::{NoParameters, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    broker::{Message, ORIGINAL_ID_HEADER, Origin, Original},
    ledger::Resolution,
};

/// Where the message went.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Replayed {
    id: Uuid,
    exchange: String,
    routing_key: String,
}

/// Publish a message again. If it still can't be understood, it comes back as a new one.
#[utoipa::path(
    post, path = "/api/v1/signups/customerio/unprocessable/{failureId}/replay",
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
    let ready = state.ready()?;
    let message = state.ledger.unprocessable_message(id).await?.ok_or_else(unknown)?;
    let origin = Origin { exchange: &message.exchange, routing_key: &message.routing_key };
    let original = Original {
        message_id: message.headers.get(ORIGINAL_ID_HEADER).and_then(|id| id.as_str()),
        content_type: message.content_type.as_deref(),
        body: message.body.clone(),
    };
    // Published first: a crash in between replays it once more, which changes nothing.
    if publish_once(&ready.publisher, &Message::replay(id, origin, original)).await
        == Published::NotYet
    {
        return Err(Problem::unavailable(
            "the broker has not confirmed the message, so it stays in the list; try again when \
                /readyz says ready",
        ));
    }
    state.ledger.resolve_unprocessable(id, Resolution::Replayed, &identity.name).await?;
    Ok(Json(Replayed { id, exchange: message.exchange, routing_key: message.routing_key }))
}
