//! Errors as problem details (RFC 9457). `detail` says what was expected or what to do.

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

/// The content type of a problem.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";

/// A problem (<https://www.rfc-editor.org/rfc/rfc9457>), sent as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// The reason phrase of the status.
    title: &'static str,
    /// The error, with what was expected or what to do.
    detail: String,
    /// Seconds for the header `Retry-After`.
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
        let detail = format!("{reason}; retry in {retry_after} s");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Whether the request was not authenticated.
    pub(crate) fn is_unauthorized(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED.as_u16()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after.map(HeaderValue::from);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.extend(retry_after.map(|seconds| (RETRY_AFTER, seconds)));
        response
    }
}

impl From<ledger::Error> for Problem {
    fn from(error: ledger::Error) -> Self {
        if error.is_transient() {
            tracing::warn!(%error, "a request failed: the database did not answer");
            return Self::unavailable(
                "the database did not answer; retry when /readyz returns 200",
            );
        }
        tracing::error!(%error, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the database refused this request; see the log",
        )
    }
}

/// The problems that any endpoint of the admin API may return, for the description.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum Problems {
    /// An invalid query key, value or body. `detail` says what was expected.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(Problem),
    /// No token, or an unknown one.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(Problem),
    /// The role does not allow the request, or it is from a page of another site.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(Problem),
    /// The job, message, bulk retry or bulk action does not exist.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
    /// The body is larger than 1 MiB.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// The body is not `application/json`.
    #[response(status = 415, content_type = "application/problem+json")]
    UnsupportedMediaType(Problem),
    /// The JSON does not have the expected shape. `detail` names the field.
    #[response(status = 422, content_type = "application/problem+json")]
    Unprocessable(Problem),
    /// The token is wrong, and too many wrong tokens are being answered. A right token never gets
    /// this response.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(Problem),
    /// The database or RabbitMQ does not answer, or the request took too long.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(Problem),
}
