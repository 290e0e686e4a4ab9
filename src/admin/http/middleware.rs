//! Middleware: authentication, the limits of a request, and the headers of every response.

#![expect(
    clippy::disallowed_methods,
    reason = "an edge: a session is checked when a request arrives"
)]

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
        auth::{AccessTokens, Identity, Role},
        extract::{BODY_BYTES_MAX, too_large},
        problem::Problem,
    },
    page,
    state::AppState,
};

/// Name of the session cookie.
pub(crate) const SESSION_COOKIE: &str = "customerio_sync_session";

/// A page may only load, run and connect to what this server serves.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// How a request was authenticated. A browser adds the cookie, or connects from loopback, even for
/// a page of another site, so its origin is checked as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AuthMethod {
    Header,
    Browser,
}

/// Adds the [`Identity`] to a request, or responds with 401 or 403.
pub(crate) async fn authenticate(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let (identity, method) = identify(&state, peer, request.headers())?;
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    if method == AuthMethod::Browser && (!is_read || is_upgrade) {
        require_same_origin(request.headers())?;
    }
    if !is_read && identity.role != Role::Operator {
        let detail = format!(
            "{:?} has the role viewer; this request requires the role operator",
            identity.name
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    request.extensions_mut().insert(identity);
    Ok(next.run(request).await)
}

/// Responds with the login form to a browser without a session.
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
        Err(problem) if problem.is_unauthorized() => page::login(None),
        Err(problem) => problem.into_response(),
    }
}

fn identify(
    state: &AppState,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Result<(Identity, AuthMethod), Problem> {
    let tokens = &state.config.admin_tokens;
    if tokens.is_empty() {
        // The host name has to be loopback as well: another site may resolve its own name to this
        // address (DNS rebinding).
        if peer.ip().to_canonical().is_loopback() && is_for_loopback(headers) {
            return Ok((
                Identity { name: "local".to_owned(), role: Role::Operator },
                AuthMethod::Browser,
            ));
        }
        let detail =
            "ADMIN_TOKENS is not set, so only loopback peers with a loopback host name have access";
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
        let identity = identity.ok_or_else(|| unauthorized("unknown token"))?;
        return Ok((identity, AuthMethod::Header));
    }
    let identity = session(headers, tokens, Utc::now());
    let identity = identity.ok_or_else(|| {
        unauthorized("expected Authorization: Bearer TOKEN, or the session cookie of the page")
    })?;
    Ok((identity, AuthMethod::Browser))
}

/// Returns the owner of a token, or a 429 if the peer has sent too many wrong tokens.
pub(crate) fn identify_token(
    state: &AppState,
    peer: SocketAddr,
    token: &str,
) -> Result<Option<Identity>, Problem> {
    if let Some(left) = state.login_throttle.blocked_for(peer.ip()) {
        let seconds = left.as_secs() + 1;
        return Err(Problem::too_many(
            seconds,
            format!("too many wrong tokens from {}", peer.ip()),
        ));
    }
    let identity = state.config.admin_tokens.identify(token);
    if identity.is_none() {
        state.login_throttle.record_failure(peer.ip());
        state.metrics.http.wrong_tokens.inc();
    }
    Ok(identity)
}

/// Refuses a request of a page of another site. A request without `Origin` is not from a browser
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
        "the request is from a page of another site; use the page of this service",
    ))
}

/// Returns the owner of the session in the cookie.
pub(crate) fn session(
    headers: &HeaderMap,
    tokens: &AccessTokens,
    now: DateTime<Utc>,
) -> Option<Identity> {
    tokens.identify_session(cookie(headers, SESSION_COOKIE)?, now)
}

/// Whether the request names a loopback host.
pub(crate) fn is_for_loopback(headers: &HeaderMap) -> bool {
    host(headers).is_some_and(is_loopback_name)
}

/// The requested host, without its port.
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

/// Limits the duration and the size of a request.
pub(crate) async fn limit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if length
        .and_then(|length| length.parse::<usize>().ok())
        .is_some_and(|length| length > BODY_BYTES_MAX)
    {
        return too_large().into_response();
    }
    let limit = state.config.request_timeout;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable(format!(
            "the request was not completed within {limit:?}; it may still complete, so check the \
                result before retrying"
        ))
        .into_response(),
    }
}

/// Adds the security headers to every response.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // With "no-referrer", the origin of this page's forms would be "null".
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
