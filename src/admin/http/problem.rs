//! Errors as RFC 9457 problem details: a status, and a `detail` that says what to do.

use std::fmt::Display;

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::ledger;

/// A problem (<https://www.rfc-editor.org/rfc/rfc9457>), sent as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// The status again.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// The status in words.
    title: &'static str,
    /// What is wrong, and what is allowed or what to do.
    detail: String,
    /// After how many seconds another try is sensible, for the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status: status.as_u16(), title, detail: detail.into(), retry_after: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn too_many(retry_after: u64, reason: impl Display) -> Self {
        let detail = format!("{reason}; try again in {retry_after} s");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether it is that nobody is known by the request.
    pub(crate) fn is_about_auth(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED.as_u16()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after.map(HeaderValue::from);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.extend(retry_after.map(|seconds| (RETRY_AFTER, seconds)));
        response
    }
}

impl From<ledger::Error> for Problem {
    fn from(error: ledger::Error) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "a request met the database in trouble");
            return Self::unavailable(
                "the database did not answer; try again in a moment, /readyz tells more",
            );
        }
        tracing::error!(%error, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the database refused this request; the log tells more",
        )
    }
}

/// The problems that any endpoint of the admin API may answer with, for its description.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "it describes; nobody makes one")]
pub(crate) enum Problems {
    /// A query key, a value or a body that is not understood; `detail` says what is allowed.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(Problem),
    /// No token, or one that is not known.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(Problem),
    /// A role that may not do this, or a request from another site.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// There is nothing of that kind.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// A body of more than 1 MiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// A body that is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(Problem),
    /// JSON of another shape than expected; `detail` names the field.
    #[response(status = 422, content_type = "application/problem+json")]
    Unprocessable(Problem),
    /// Too many wrong tokens came from this address; `Retry-After` tells for how long none is
    /// looked at.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(Problem),
    /// The database or the broker does not answer.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}
