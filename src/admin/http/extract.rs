//! Extractors. They validate every value; an error names the key and what was expected.

use std::{borrow::Cow, fmt};

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header::CONTENT_TYPE, request::Parts},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error},
};
use uuid::Uuid;

use crate::admin::http::problem::Problem;

/// Maximum size of a request body.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The query string. `T` refuses unknown keys.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        read_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

pub(crate) fn read_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let read = serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs));
    read.map_err(|error| Problem::bad_request(located("query", &error)))
}

/// No query parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParameters {}

/// A JSON body. `T` refuses unknown fields.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = content_type.is_some_and(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim() == "application/json")
        });
        if !is_json {
            let detail = "expected a JSON object with content-type: application/json";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX)
            .await
            .map_err(|_| too_large())?;
        read_body(&body).map(Self)
    }
}

pub(crate) fn read_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // A derived `Deserialize` also accepts an array, with the fields in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(Problem::bad_request("body: expected a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    let value = read.map_err(|error| {
        let is_json = error.inner().is_data();
        let status =
            if is_json { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        Problem::new(status, located("body", &error))
    })?;
    deserializer.end().map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    Ok(value)
}

pub(crate) fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("expected a body of at most {BODY_BYTES_MAX} bytes"),
    )
}

fn located<E: fmt::Display>(whole: &str, error: &serde_path_to_error::Error<E>) -> String {
    let path = error.path().to_string();
    if path == "." {
        format!("{whole}: {}", error.inner())
    } else {
        format!("{whole} {path}: {}", error.inner())
    }
}

/// The id in the path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathId(pub(crate) Uuid);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let text = text.map_err(|error| Problem::bad_request(format!("path: {error}")))?;
        let id = text.parse().map_err(|_| {
            Problem::bad_request(format!("path: found {:?}, expected a UUID", text.0))
        })?;
        Ok(Self(id))
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounded<const MIN: i64, const MAX: i64>(pub(crate) i64);

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).ok_or_else(|| {
            D::Error::custom(format!("found {text:?}, expected an integer from {MIN} to {MAX}"))
        })
    }
}

/// Maximum items per page.
pub(crate) type Limit = Bounded<1, 500>;
/// Number of items to skip.
pub(crate) type Offset = Bounded<0, 1_000_000_000>;

/// The reason for a dismissal: 1 to 500 characters, not only white space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReasonText(pub(crate) String);

impl<'de> Deserialize<'de> for ReasonText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_valid =
            !text.trim().is_empty() && text.chars().count() <= 500 && !text.contains('\0');
        if is_valid {
            Ok(Self(text))
        } else {
            Err(D::Error::custom(
                "expected 1 to 500 characters, none of them U+0000, and not only white space",
            ))
        }
    }
}
