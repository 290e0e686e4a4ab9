//! `GET /api/v1/signups/customerio/unprocessable`, and one of them: messages that could not be
//! understood.

use axum::{Json, extract::State};
use base64::Engine;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::view::diagnosis::VerdictView,
        http::{
            extract::{Limit, NoParameters, Offset, PathId, Query},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    diagnosis::Case,
    job::Reason,
    ledger::Unprocessable,
};

/// Bytes of a body that the list shows. The message alone is shown whole.
const MOST_BODY_BYTES: usize = 16 * 1024;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Parameters {
    /// Items in the answer at most.
    #[param(value_type = Option<i64>, minimum = 1, maximum = 500, default = 50)]
    limit: Option<Limit>,
    /// Items that are left out at the start.
    #[param(value_type = Option<i64>, minimum = 0, maximum = 1_000_000_000, default = 0)]
    offset: Option<Offset>,
}

/// A page of messages.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UnprocessableList {
    /// The latest first.
    items: Vec<UnprocessableView>,
    total: i64,
    limit: i64,
    offset: i64,
}

/// A message that could not be understood.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnprocessableView {
    id: Uuid,
    reason: Reason,
    /// Where in the message it is wrong: a JSON path, `$` for the whole.
    path: Option<String>,
    /// What was found there and what was expected.
    error_message: String,
    exchange: String,
    routing_key: String,
    failed_at: DateTime<Utc>,
    content_type: Option<String>,
    #[schema(value_type = Object)]
    headers: Value,
    /// The body, if it is text.
    body: Option<String>,
    /// The body in Base64, if it is not text.
    body_base64: Option<String>,
    /// Bytes of the whole body.
    body_bytes: usize,
    /// Whether the list shows only its start.
    body_is_cut: bool,
    verdict: VerdictView,
}

impl UnprocessableView {
    fn new(message: Unprocessable, most_body_bytes: usize) -> Self {
        let reason = message.reason.parse().unwrap_or(Reason::Unprocessable);
        let verdict = VerdictView::of(&Case {
            reason: Some(reason),
            error_type: None,
            http_status: None,
            message: &message.error_message,
            occurred_at: None,
        });
        let (path, told) = match message.error_message.split_once(": ") {
            Some((path, told)) if reason == Reason::Unprocessable => {
                (Some(path.to_owned()), told.to_owned())
            }
            _ => (None, message.error_message),
        };
        let body_bytes = message.body.len();
        let (body, body_base64) = shown(&message.body, most_body_bytes);
        Self {
            id: message.id,
            reason,
            path,
            error_message: told,
            exchange: message.exchange,
            routing_key: message.routing_key,
            failed_at: message.failed_at,
            content_type: message.content_type,
            headers: message.headers,
            body,
            body_base64,
            body_bytes,
            body_is_cut: body_bytes > most_body_bytes,
            verdict,
        }
    }
}

/// The start of a body, as text or in Base64.
fn shown(body: &[u8], most: usize) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(body) {
        Ok(text) => (Some(text[..text.floor_char_boundary(most)].to_owned()), None),
        Err(_) => (
            None,
            Some(base64::engine::general_purpose::STANDARD.encode(&body[..body.len().min(most)])),
        ),
    }
}

/// List the messages that could not be understood.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/unprocessable", operation_id = "listUnprocessable",
    tag = "unprocessable", params(Parameters),
    responses((status = 200, body = UnprocessableList), Problems)
)]
pub(crate) async fn list(
    State(state): State<AppState>,
    Query(parameters): Query<Parameters>,
) -> Result<Json<UnprocessableList>, Problem> {
    let limit = parameters.limit.map_or(50, |limit| limit.0);
    let offset = parameters.offset.map_or(0, |offset| offset.0);
    let (items, total) = state.ledger.unprocessable(limit, offset).await?;
    let items =
        items.into_iter().map(|message| UnprocessableView::new(message, MOST_BODY_BYTES)).collect();
    Ok(Json(UnprocessableList { items, total, limit, offset }))
}

/// Show one message with its whole body.
#[utoipa::path(
    get, path = "/api/v1/signups/customerio/unprocessable/{failureId}",
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
    Problem::not_found(
        "there is no open message with this id; it may have been replayed or dismissed",
    )
}
