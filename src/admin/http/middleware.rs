//! What stands before every route: who asks, from where, how much and for how long; and the headers
//! of every answer.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};

use crate::admin::{
    http::{
        auth::{Identity, Role, Tokens},
        extract::{MAX_BODY_BYTES, too_large},
        problem::Problem,
    },
    page,
    state::AppState,
};

/// The cookie that holds a browser's session.
pub(crate) const SESSION_COOKIE: &str = "customerio_sync_session";

/// Only what this server serves may be loaded, run or spoken to.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; \
     connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// How somebody is known. A browser sends a cookie, or comes from loopback, without anybody's
/// doing: there the request has to come from our own page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    ByHeader,
    ByBrowser,
}

/// Lets a request through with its [`Identity`], or answers 401 or 403.
pub(crate) async fn authenticate(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (identity, known) = identify(&state, peer, request.headers())?;
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    if known == Known::ByBrowser && (!is_read || is_upgrade) {
        require_same_origin(request.headers())?;
    }
    if !is_read && identity.role != Role::Operator {
        let detail =
            format!("{:?} has the role viewer; this needs the role operator", identity.name);
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    request.extensions_mut().insert(identity);
    Ok(next.run(request).await)
}

/// Shows the login form to a browser that nobody is known by.
pub(crate) async fn authenticate_page(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    match identify(&state, peer, request.headers()) {
        Ok((identity, _)) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(problem) if problem.is_about_auth() => page::login(None),
        Err(problem) => problem.into_response(),
    }
}

fn identify(
    state: &AppState,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Result<(Identity, Known), Problem> {
    let tokens = &state.config.admin_tokens;
    if tokens.is_empty() {
        // The name of the host, too, has to be loopback: a page elsewhere may make its own name
        // point here.
        if peer.ip().to_canonical().is_loopback() && is_for_loopback(headers) {
            return Ok((
                Identity { name: "local".to_owned(), role: Role::Operator },
                Known::ByBrowser,
            ));
        }
        let detail =
            "no ADMIN_TOKENS are set, so only loopback peers are answered, by a loopback name";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let unauthorized = |detail: &str| Problem::new(StatusCode::UNAUTHORIZED, detail);
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let presented = authorization.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token =
            presented.ok_or_else(|| unauthorized("expected Authorization: Bearer TOKEN"))?;
        let identity = identify_token(state, peer, token)?;
        let identity = identity.ok_or_else(|| unauthorized("the token is not known"))?;
        return Ok((identity, Known::ByHeader));
    }
    let identity = session(headers, tokens, Utc::now());
    let identity = identity.ok_or_else(|| {
        unauthorized("expected Authorization: Bearer TOKEN, or a session of the page")
    })?;
    Ok((identity, Known::ByBrowser))
}

/// Whose token this is, unless the peer has presented too many that are nobody's.
pub(crate) fn identify_token(
    state: &AppState,
    peer: SocketAddr,
    token: &str,
) -> Result<Option<Identity>, Problem> {
    if let Some(left) = state.guesses.shut_out(peer.ip()) {
        let seconds = left.as_secs() + 1;
        return Err(Problem::too_many(
            seconds,
            format!("too many wrong tokens came from {}", peer.ip()),
        ));
    }
    let identity = state.config.admin_tokens.identify(token);
    if identity.is_none() {
        state.guesses.note_wrong(peer.ip());
    }
    Ok(identity)
}

/// Refuses a request that a page of another site has made. Who sends no `Origin` is no browser
/// (<https://fetch.spec.whatwg.org/#origin-header>).
pub(crate) fn require_same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let authority = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .map(|(_, authority)| authority);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if authority.is_some() && authority == host {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "the request comes from another site; use the page of this service",
    ))
}

/// Whose session the cookie holds.
pub(crate) fn session(
    headers: &HeaderMap,
    tokens: &Tokens,
    now: DateTime<Utc>,
) -> Option<Identity> {
    tokens.identify_session(cookie(headers, SESSION_COOKIE)?, now)
}

/// Whether it was asked for a loopback name.
pub(crate) fn is_for_loopback(headers: &HeaderMap) -> bool {
    host(headers).is_some_and(is_loopback_name)
}

/// The host that was asked for, without its port.
fn host(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    Some(match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    })
}

fn is_loopback_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// Bounds the time and the size of a request.
pub(crate) async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length
        .and_then(|length| length.parse::<usize>().ok())
        .is_some_and(|length| length > MAX_BODY_BYTES)
    {
        return too_large().into_response();
    }
    let limit = state.config.request_timeout;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable(format!(
            "not done within {limit:?}; what was begun may go on, look at the result before you \
                try again"
        ))
        .into_response(),
    }
}

/// Puts the headers on every answer that keep a browser from doing more with it than meant.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With "no-referrer", the origin of our own forms would be "null".
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_static(CONTENT_SECURITY_POLICY);
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers_with(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_loopback_names_are_loopback() {
        for (value, expected) in [
            ("localhost:8080", true),
            ("127.0.0.1", true),
            ("127.0.0.1:80", true),
            ("[::1]:80", true),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("10.0.0.1", false),
        ] {
            let headers = headers_with(&[(header::HOST, value)]);
            assert_eq!(is_for_loopback(&headers), expected, "{value}");
        }
    }

    #[test]
    fn a_request_of_another_site_is_refused() {
        let from =
            |origin| headers_with(&[(header::HOST, "sync.example:8080"), (header::ORIGIN, origin)]);
        assert!(require_same_origin(&from("https://sync.example:8080")).is_ok());
        assert!(require_same_origin(&headers_with(&[(header::HOST, "sync.example:8080")])).is_ok());
        for origin in [
            "https://evil.example",
            "null",
            "https://sync.example",
            "https://sync.example:8080.evil",
        ] {
            assert!(require_same_origin(&from(origin)).is_err(), "{origin}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = headers_with(&[(header::COOKIE, "a=1; customerio_sync_session=x.1.y; b=2")]);
        assert_eq!(cookie(&headers, SESSION_COOKIE), Some("x.1.y"));
        assert_eq!(cookie(&headers, "session"), None);
    }
}
