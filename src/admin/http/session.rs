//! `POST /session` logs a browser in. `POST /session/end`, for the form of the page, and
//! `DELETE /session` log it out. `GET /session` shows the user.

#![expect(clippy::disallowed_methods, reason = "an edge: a session starts with the response")]

use std::net::SocketAddr;

use axum::{
    Extension, Form, Json,
    extract::{ConnectInfo, State, rejection::FormRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::admin::{
    http::{
        auth::{Credential, Identity, SESSION_LIFETIME},
        middleware::{SESSION_COOKIE, identify_token, require_same_origin, session_cookie},
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

pub(crate) async fn show(Extension(identity): Extension<Identity>) -> Json<SessionInfo> {
    let has_session = matches!(identity.credential, Credential::Session(_));
    Json(SessionInfo { name: identity.name, role: identity.role.as_str(), has_session })
}

/// Creates a session for a token.
pub(crate) async fn begin(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    login: Result<Form<Login>, FormRejection>,
) -> Result<Response, Problem> {
    require_same_origin(&headers)?;
    let Form(login) = login.map_err(|rejection| {
        let detail = "expected a form with the field token, and content-type: \
            application/x-www-form-urlencoded";
        Problem::new(rejection.status(), detail)
    })?;
    let Some(identity) = identify_token(&state, peer, login.token.trim()).await? else {
        return refused(&headers);
    };
    let salt = state.sessions.salt(&state.ledger).await?;
    let tokens = state.tokens.current();
    // The token may have been removed meanwhile.
    match tokens.tokens.session(&identity.name, Uuid::new_v4(), salt, Utc::now()) {
        Some(session) if tokens.grant(&identity) => {
            let cookie = cookie(&headers, &session, SESSION_LIFETIME.num_seconds());
            Ok((cookie, Redirect::to("/")).into_response())
        }
        _ => refused(&headers),
    }
}

/// A browser that submitted the form gets it again, any other client a problem.
fn refused(headers: &HeaderMap) -> Result<Response, Problem> {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        return Ok(page::login(Some("This token is not known.")));
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "unknown token; use one of ADMIN_TOKENS"))
}

/// Ends the session, and shows the login form.
pub(crate) async fn end(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    end_session(&state, &headers).await?;
    Ok((cookie(&headers, "", 0), Redirect::to("/")).into_response())
}

/// Ends the session. Without one, there is nothing to do.
pub(crate) async fn delete(
    State(state): State<AppState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    end_session(&state, &headers).await?;
    Ok((cookie(&headers, "", 0), StatusCode::NO_CONTENT).into_response())
}

/// Ends the session of the cookie on every replica.
async fn end_session(state: &AppState, headers: &HeaderMap) -> Result<(), Problem> {
    require_same_origin(headers)?;
    let Some(session) = session_cookie(headers) else { return Ok(()) };
    let salt = state.sessions.salt(&state.ledger).await?;
    // A session that was ended before is ended again, since the first request may have failed.
    let identity = state.tokens.current().tokens.identify_session(session, salt, Utc::now());
    let Some(Credential::Session(session)) = identity.map(|identity| identity.credential) else {
        return Ok(());
    };
    state.sessions.end(&session, &state.ledger).await.map_err(|error| {
        tracing::warn!(%error, "recording the end of a session failed");
        Problem::unavailable(
            "the session has ended on this replica only, since the database did not answer; log \
                out again when /readyz returns 200",
        )
    })
}

/// Builds the cookie: scripts can't read it, and requests of other sites carry it only when they
/// open a page (<https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis>). Changes
/// are never such requests.
fn cookie(headers: &HeaderMap, session: &str, seconds: i64) -> HeaderMap {
    // A forged header could only restrict the cookie of its sender.
    let is_tls = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https")
        || headers.get(header::ORIGIN).is_some_and(is_https);
    let secure = if is_tls { "; Secure" } else { "" };
    let cookie = format!(
        "{SESSION_COOKIE}={session}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
    );
    let value = HeaderValue::try_from(cookie).expect("a session is plain ASCII");
    HeaderMap::from_iter([(header::SET_COOKIE, value)])
}

fn is_https(origin: &HeaderValue) -> bool {
    origin.as_bytes().starts_with(b"https://")
}
