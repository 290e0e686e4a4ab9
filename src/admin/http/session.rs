//! `POST /session` and `POST /session/end`: log a browser in and out. `GET /session`: shows the
//! user.

#![expect(clippy::disallowed_methods, reason = "an edge: a session starts with the response")]

use std::net::SocketAddr;

use axum::{
    Extension, Form, Json,
    extract::{ConnectInfo, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
};
use chrono::Utc;
use serde::{Deserialize, Serialize};

use crate::admin::{
    http::{
        auth::{Identity, SESSION_LIFETIME},
        middleware::{SESSION_COOKIE, identify_token, require_same_origin},
        problem::Problem,
    },
    page,
    state::AppState,
};

#[derive(Deserialize)]
pub(crate) struct Login {
    token: String,
}

/// The user of the page.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionInfo {
    name: String,
    role: &'static str,
    /// Whether the user can log out.
    has_session: bool,
}

pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
) -> Json<SessionInfo> {
    let has_session = !state.config.admin_tokens.is_empty();
    Json(SessionInfo { name: identity.name, role: identity.role.as_str(), has_session })
}

/// Creates a session for a token.
pub(crate) async fn begin(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Form(login): Form<Login>,
) -> Result<Response, Problem> {
    require_same_origin(&headers)?;
    let identity = identify_token(&state, peer, login.token.trim())?;
    let session =
        identity.and_then(|identity| state.config.admin_tokens.session(&identity.name, Utc::now()));
    let Some(session) = session else { return Ok(page::login(Some("This token is not known."))) };
    Ok((cookie(&headers, &session, SESSION_LIFETIME.num_seconds()), Redirect::to("/"))
        .into_response())
}

pub(crate) async fn end(headers: HeaderMap) -> Result<Response, Problem> {
    require_same_origin(&headers)?;
    Ok((cookie(&headers, "", 0), Redirect::to("/")).into_response())
}

/// Builds the cookie: scripts can't read it, and requests of other sites do not carry it
/// (<https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis>).
fn cookie(headers: &HeaderMap, session: &str, seconds: i64) -> HeaderMap {
    let is_tls = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!(
        "{SESSION_COOKIE}={session}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    );
    let value = HeaderValue::try_from(cookie).expect("a session is plain ASCII");
    HeaderMap::from_iter([(header::SET_COOKIE, value)])
}
