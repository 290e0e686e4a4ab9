//! `GET /unprocessable` and `GET /unprocessable/{id}`: shows unprocessable messages.
//!
//! Of each message, a bounded part is read: anybody may publish large ones.

use axum::{Extension, Json, extract::State};
use base64::Engine;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::{
    admin::{
        api::view::diagnosis::DiagnosisView,
        http::{
            auth::Identity,
            extract::{Limit, NoParameters, Offset, PathId, Query},
            mask::{mask_json, mask_text},
            problem::{Problem, Problems},
        },
        state::AppState,
    },
    broker::headers,
    diagnosis::FailureFacts,
    job::Reason,
    ledger::{MessageReadLimits, UnprocessableMessage},
    runtime::text_enum::known,
};

/// What is read of each message of the list.
const LISTED: MessageReadLimits =
    MessageReadLimits { body_bytes: 16 * 1024, header_bytes: 16 * 1024 };
/// What is read of a single message: several times more than a valid event, and than the headers of
/// any message.
pub(super) const SHOWN: MessageReadLimits =
    MessageReadLimits { body_bytes: 1024 * 1024, header_bytes: 1024 * 1024 };

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
    /// The headers of its message in the failure queue. Empty if `headersAreCut`.
    #[schema(value_type = Object)]
    headers: Value,
    /// Whether the headers are left out because they are too large. The list leaves out more than
    /// 16 KiB of JSON.
    headers_are_cut: bool,
    /// The start of the body, if it is UTF-8 and not masked: 16 KiB in the list, 1 MiB of a single
    /// message.
    body: Option<String>,
    /// The start of the body in Base64, if it is not UTF-8 and not masked.
    body_base64: Option<String>,
    /// Size of the whole body in bytes.
    body_bytes: i32,
    /// Whether the body is masked: for the role viewer, and in the session of a browser until it is
    /// revealed.
    body_is_masked: bool,
    /// Whether only the start of the body is shown.
    body_is_cut: bool,
    verdict: DiagnosisView,
}

impl UnprocessableView {
    pub(crate) fn new(message: UnprocessableMessage, read: MessageReadLimits) -> Self {
        let reason = known(Some(&message.reason)).unwrap_or(Reason::Unprocessable);
        let verdict = DiagnosisView::of(&FailureFacts {
            reason: Some(reason),
            cause: None,
            error_type: None,
            http_status: None,
            occurred_at: None,
        });
        let body_is_cut = message.body_bytes > read.body_bytes;
        let (body, body_base64) = body_text(message.body, body_is_cut);
        Self {
            id: message.id,
            reason,
            path: message.error_path,
            error_message: message.error_message,
            exchange: message.exchange,
            routing_key: message.routing_key,
            failed_at: message.failed_at,
            content_type: message.content_type,
            headers_are_cut: message.headers.is_none(),
            headers: message.headers.unwrap_or_else(|| Value::Object(Map::new())),
            body,
            body_base64,
            body_bytes: message.body_bytes,
            body_is_masked: false,
            body_is_cut,
            verdict,
        }
    }

    /// Leaves the body out, and masks the texts that may quote it, if `masked`.
    fn masked_if(mut self, masked: bool) -> Self {
        if masked {
            self.path = self.path.as_deref().map(mask_text);
            self.error_message = mask_text(&self.error_message);
            mask_headers(&mut self.headers);
            (self.body, self.body_base64) = (None, None);
            self.body_is_masked = true;
        }
        self
    }
}

/// Masks our headers, and hides the publisher's, which may contain anything.
fn mask_headers(headers: &mut Value) {
    let Value::Object(fields) = headers else { return };
    fields.retain(|name, _| headers::ALL.contains(&name.as_str()));
    mask_json(headers);
}

/// The start of a body, as text or in Base64. A cut may have split its last character, which is
/// left out.
fn body_text(mut body: Vec<u8>, is_cut: bool) -> (Option<String>, Option<String>) {
    if is_cut
        && let Err(error) = std::str::from_utf8(&body)
        && error.error_len().is_none()
    {
        body.truncate(error.valid_up_to());
    }
    match String::from_utf8(body) {
        Ok(text) => (Some(text), None),
        Err(error) => {
            let base64 = base64::engine::general_purpose::STANDARD.encode(error.as_bytes());
            (None, Some(base64))
        }
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
    Extension(identity): Extension<Identity>,
    Query(parameters): Query<UnprocessableParameters>,
) -> Result<Json<UnprocessableList>, Problem> {
    let limit = parameters.limit.map_or(50, |limit| limit.0);
    let offset = parameters.offset.map_or(0, |offset| offset.0);
    let (items, total) = state.ledger.unprocessable(limit, offset, LISTED).await?;
    let items = items
        .into_iter()
        .map(|message| UnprocessableView::new(message, LISTED))
        .map(|view| view.masked_if(identity.is_masked(false)))
        .collect();
    Ok(Json(UnprocessableList { items, total, limit, offset }))
}

/// Show one message with up to 1 MiB of its body, unless that is masked.
#[utoipa::path(
    get, path = "/unprocessable/{failureId}",
    operation_id = "showUnprocessable", tag = "unprocessable",
    params(("failureId" = Uuid, Path, description = "The message.")),
    responses((status = 200, body = UnprocessableView), Problems)
)]
pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
    PathId(id): PathId,
    Query(NoParameters {}): Query<NoParameters>,
) -> Result<Json<UnprocessableView>, Problem> {
    let message = state.ledger.unprocessable_message(id, SHOWN).await?.ok_or_else(unknown)?;
    let view = UnprocessableView::new(message, SHOWN);
    Ok(Json(view.masked_if(identity.is_masked(false))))
}

pub(crate) fn unknown() -> Problem {
    Problem::not_found("no such open message; it may have been replayed or dismissed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_within_a_character_leaves_the_text_before_it() {
        let cut = "aä".as_bytes()[..2].to_vec();
        assert_eq!(body_text(cut.clone(), true), (Some("a".to_owned()), None));
        assert_eq!(body_text(cut, false), (None, Some("YcM=".to_owned())), "it ends like this");
        assert_eq!(body_text(b"a\xff".to_vec(), true), (None, Some("Yf8=".to_owned())));
    }
}
