//! `POST /session` and `POST /session/end`: a browser's way in and out, and `GET /session`: who it
//! is.

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
        auth::{Identity, SESSION},
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

/// Who uses the page, and what the role allows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Who {
    name: String,
    role: &'static str,
    /// Whether there is a session that can be ended.
    has_session: bool,
}

pub(crate) async fn show(
    State(state): State<AppState>,
    Extension(identity): Extension<Identity>,
) -> Json<Who> {
    let has_session = !state.config.admin_tokens.is_empty();
    Json(Who { name: identity.name, role: identity.role.as_str(), has_session })
}

/// Exchanges a token for a session.
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
    Ok((cookie(&headers, &session, SESSION.num_seconds()), Redirect::to("/")).into_response())
}

pub(crate) async fn end(headers: HeaderMap) -> Result<Response, Problem> {
    require_same_origin(&headers)?;
    Ok((cookie(&headers, "", 0), Redirect::to("/")).into_response())
}

/// No script can read it, and no other site can make a browser send it
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
