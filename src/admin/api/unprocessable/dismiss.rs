//! `POST /unprocessable/{id}/dismiss` and `POST /unprocessable/dismiss`: resolves one message that
//! is not needed, or all of a selection.

use axum::{
    Extension,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    admin::{
        api::{
            sync_failures::retry::DryRunParameters,
            unprocessable::{dry_run::MessageDryRun, list::unknown},
        },
        http::{
            auth::Identity,
            extract::{Json, NoParameters, PathId, Query, ReasonText},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    job::Reason,
    ledger::{BulkAction, MessageResolution, MessageSelection, Resolved, message_text},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DismissRequest {
    /// The reason, for the audit log.
    #[schema(
        value_type = String, min_length = 1, max_length = 500,
        pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$",
    )]
    reason: ReasonText,
}

#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DismissedMessage {
    id: Uuid,
}

/// Dismiss a message.
#[utoipa::path(
    post, path = "/unprocessable/{failureId}/dismiss",
    operation_id = "dismissUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")), request_body = DismissRequest,
    responses((status = 200, body = DismissedMessage), Problems)
)]
pub(crate) async fn dismiss(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
    Json(request): Json<DismissRequest>,
) -> Result<axum::Json<DismissedMessage>, Problem> {
    let resolution = MessageResolution::Dismissed(&request.reason.0);
    match state.ledger.resolve_unprocessable(id, resolution, &identity.name).await? {
        Resolved::Done => Ok(axum::Json(DismissedMessage { id })),
        Resolved::NotOpen => Err(unknown()),
    }
}

/// A selection, as for a replay, and the reason for the dismissal. `reason` is a filter here.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MessageDismissal {
    /// Only messages that are listed with this reason.
    reason: Option<Reason>,
    /// Only messages with the error at this path, as the list shows it.
    #[serde(default, deserialize_with = "message_text")]
    #[schema(max_length = 2048, pattern = r"^[^\u0000]*$")]
    path: Option<String>,
    /// Only messages with this routing key, as the list shows it.
    #[serde(default, deserialize_with = "message_text")]
    #[schema(max_length = 2048, pattern = r"^[^\u0000]*$")]
    routing_key: Option<String>,
    /// The reason for the dismissal, for the audit log.
    #[schema(
        value_type = Option<String>, min_length = 1, max_length = 500,
        pattern = r"^[^\u0000]*[^\s\u0000][^\u0000]*$",
    )]
    dismiss_reason: Option<ReasonText>,
}

/// Dismiss all messages of a selection. Without a filter, every open message is selected.
///
/// A selection of up to 1000 messages is usually dismissed when this returns. A larger one proceeds
/// in steps, survives restarts of the service, and can be shown and cancelled as a bulk action.
#[utoipa::path(
    post, path = "/unprocessable/dismiss", operation_id = "dismissAllUnprocessable",
    tag = "bulk", params(DryRunParameters),
    request_body = MessageDismissal,
    responses(
        (status = 200, description = "With dryRun, the preview.", body = MessageDryRun),
        (status = 202, description = "The bulk action was created.", body = BulkAction),
        Problems,
    )
)]
pub(crate) async fn dismiss_all(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<DryRunParameters>,
    Json(dismissal): Json<MessageDismissal>,
) -> Result<Response, Problem> {
    let MessageDismissal { reason, path, routing_key, dismiss_reason } = dismissal;
    let selection = MessageSelection { reason, path, routing_key };
    if parameters.dry_run {
        let preview = state.ledger.preview_messages(&selection, None).await?;
        return Ok(axum::Json(MessageDryRun::from(preview)).into_response());
    }
    let why = dismiss_reason.as_ref().map(|reason| reason.0.as_str());
    let action = state.ledger.dismiss_messages(&selection, why, &identity.name).await?;
    Ok((StatusCode::ACCEPTED, axum::Json(action)).into_response())
}
