//! `GET /unprocessable` and `GET /unprocessable/{id}`: shows unprocessable messages.

use axum::{Json, extract::State};
use base64::Engine;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::view::diagnosis::DiagnosisView,
        http::{
            extract::{Limit, NoParameters, Offset, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    diagnosis::FailureFacts,
    job::Reason,
    ledger::UnprocessableMessage,
    runtime::text_enum::known,
};

/// Maximum bytes per body in the list. A single message is shown whole.
const LISTED_BODY_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UnprocessableParameters {
    /// Maximum items in the response.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500, default = 50)]
    limit: Option<Limit>,
    /// Number of items to skip.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000, default = 0)]
    offset: Option<Offset>,
}

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UnprocessableList {
    /// The items, latest first.
    items: Vec<UnprocessableView>,
    total: i64,
    limit: i64,
    offset: i64,
}

/// A message that could not be parsed or validated.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnprocessableView {
    id: Uuid,
    reason: Reason,
    /// Where in the message the error is: a JSON path, `$` for the whole message.
    path: Option<String>,
    /// The path, what was found there, and what was expected.
    error_message: String,
    exchange: String,
    routing_key: String,
    failed_at: DateTime<Utc>,
    content_type: Option<String>,
    #[schema(value_type = Object)]
    headers: Value,
    /// The body, if it is UTF-8.
    body: Option<String>,
    /// The body in Base64, if it is not UTF-8.
    body_base64: Option<String>,
    /// Size of the whole body in bytes.
    body_bytes: usize,
    /// Whether only the start of the body is shown.
    body_is_cut: bool,
    verdict: DiagnosisView,
}

impl UnprocessableView {
    fn new(message: UnprocessableMessage, body_bytes_max: usize) -> Self {
        let reason = known(Some(&message.reason)).unwrap_or(Reason::Unprocessable);
        let verdict = DiagnosisView::of(&FailureFacts {
            reason: Some(reason),
            cause: None,
            error_type: None,
            http_status: None,
            occurred_at: None,
        });
        let body_bytes = message.body.len();
        let (body, body_base64) = body_text(&message.body, body_bytes_max);
        Self {
            id: message.id,
            reason,
            path: message.error_path,
            error_message: message.error_message,
            exchange: message.exchange,
            routing_key: message.routing_key,
            failed_at: message.failed_at,
            content_type: message.content_type,
            headers: message.headers,
            body,
            body_base64,
            body_bytes,
            body_is_cut: body_bytes > body_bytes_max,
            verdict,
        }
    }
}

/// The start of a body, as text or in Base64.
fn body_text(body: &[u8], bytes_max: usize) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(body) {
        Ok(text) => (Some(text[..text.floor_char_boundary(bytes_max)].to_owned()), None),
        Err(_) => (
            None,
            Some(
                base64::engine::general_purpose::STANDARD
                    .encode(&body[..body.len().min(bytes_max)]),
            ),
        ),
    }
}

/// List the unprocessable messages.
#[utoipa::path(
    get, path = "/unprocessable", operation_id = "listUnprocessable",
    tag = "unprocessable", params(UnprocessableParameters),
    responses((status = 200, body = UnprocessableList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Query(parameters): Query<UnprocessableParameters>,
) -> Result<Json<UnprocessableList>, Problem> {
    let limit = parameters.limit.map_or(50, |limit| limit.0);
    let offset = parameters.offset.map_or(0, |offset| offset.0);
    let (items, total) = state.ledger.unprocessable(limit, offset).await?;
    let items = items
        .into_iter()
        .map(|message| UnprocessableView::new(message, LISTED_BODY_BYTES_MAX))
        .collect();
    Ok(Json(UnprocessableList { items, total, limit, offset }))
}

/// Show one message with its whole body.
#[utoipa::path(
    get, path = "/unprocessable/{failureId}",
    operation_id = "showUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")),
    responses((status = 200, body = UnprocessableView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<UnprocessableView>, Problem> {
    let message = state.ledger.unprocessable_message(id).await?.ok_or_else(unknown)?;
    Ok(Json(UnprocessableView::new(message, usize::MAX)))
}

pub(crate) fn unknown() -> Problem {
    Problem::not_found("no such open message; it may have been replayed or dismissed")
}
