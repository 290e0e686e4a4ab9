//! Middleware: authentication, the limits of a request, and the headers of every response.

#![expect(
    clippy::disallowed_methods,
    reason = "an edge: a session is checked when a request arrives"
)]

use std::{net::SocketAddr, panic::AssertUnwindSafe};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use chrono::Utc;
use futures_util::FutureExt;

use crate::admin::{
    http::{
        auth::{Credential, Identity, Role},
        extract::{BODY_BYTES_MAX, too_large},
        problem::{PROBLEM_JSON, Problem},
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

/// Adds the [`Identity`] to a request, or responds with 401 or 403.
pub(crate) async fn authenticate(
    State(state): State<AppState>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let identity = identify(&state, peer, request.headers()).await?;
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_upgrade = request.headers().contains_key(header::UPGRADE);
    // A browser adds the cookie, or connects from loopback, even for a page of another site. It
    // never adds a token.
    let is_browser = !matches!(identity.credential, Credential::Token(_));
    if is_browser && (!is_read || is_upgrade) {
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
    match identify(&state, peer, request.headers()).await {
        Ok(identity) => {
            request.extensions_mut().insert(identity);
            next.run(request).await
        }
        Err(problem) if problem.is_unauthorized() && state.tokens.current().are_required => {
            page::login(None)
        }
        Err(problem) => problem.into_response(),
    }
}

async fn identify(
    state: &AppState,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Result<Identity, Problem> {
    if !state.tokens.current().are_required {
        return local(state.config.addr, peer, headers);
    }
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let presented = authorization.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let token =
            presented.ok_or_else(|| unauthorized("expected Authorization: Bearer TOKEN"))?;
        let identity = identify_token(state, peer, token).await?;
        return identity.ok_or_else(|| unauthorized("unknown token"));
    }
    let session = match session_cookie(headers) {
        Some(session) => identify_session(state, session).await?,
        None => None,
    };
    session.ok_or_else(|| {
        unauthorized("expected Authorization: Bearer TOKEN, or the session cookie of the page")
    })
}

/// Identifies a local request, if there are no tokens. One that a proxy passed on is not local,
/// wherever the proxy runs.
fn local(
    listening_on: SocketAddr,
    peer: SocketAddr,
    headers: &HeaderMap,
) -> Result<Identity, Problem> {
    let is_loopback = |addr: SocketAddr| addr.ip().to_canonical().is_loopback();
    if !is_loopback(listening_on) {
        return Err(unauthorized(
            "ADMIN_TOKENS is not set, and the service listens on an address that is not loopback; \
                set ADMIN_TOKENS, and send Authorization: Bearer TOKEN",
        ));
    }
    // The host name has to be loopback as well: another site may resolve its own name to this
    // address (DNS rebinding).
    if !is_loopback(peer) || !is_for_loopback(headers) || is_forwarded(headers) {
        return Err(unauthorized(
            "ADMIN_TOKENS is not set, so only loopback peers have access, with a loopback host \
                name and without a proxy; set ADMIN_TOKENS, and send Authorization: Bearer TOKEN",
        ));
    }
    let (name, role) = ("local".to_owned(), Role::Operator);
    Ok(Identity { name, role, credential: Credential::Local })
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

/// Returns the owner of a token. A wrong token is answered slowly, or with a 429 if too many wrong
/// tokens are being answered.
pub(crate) async fn identify_token(
    state: &AppState,
    peer: SocketAddr,
    token: &str,
) -> Result<Option<Identity>, Problem> {
    let identity = state.tokens.current().tokens.identify(token);
    if identity.is_none() {
        state.metrics.http.wrong_tokens.inc();
        state.login_throttle.delay(peer.ip()).await.map_err(|too_many| {
            Problem::too_many(too_many.retry_after.as_secs(), "too many wrong tokens")
        })?;
    }
    Ok(identity)
}

/// Returns the owner of a session that has neither expired nor been ended, or a 503 if sessions
/// can't be checked yet.
async fn identify_session(state: &AppState, session: &str) -> Result<Option<Identity>, Problem> {
    let salt = state.sessions.salt(&state.ledger).await?;
    let identity = state.tokens.current().tokens.identify_session(session, salt, Utc::now());
    Ok(identity.filter(|identity| match &identity.credential {
        Credential::Session(session) => !state.sessions.is_ended(session.id),
        Credential::Local | Credential::Token(_) => false,
    }))
}

/// Refuses a request of a page of another site. A request without `Origin` is not from a browser
/// (<https://fetch.spec.whatwg.org/#origin-header>).
pub(crate) fn require_same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok();
    if origin.zip(host).is_some_and(|(origin, host)| is_same_site(origin, host)) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "the request is from a page of another site; use the page of this service",
    ))
}

/// Whether an origin has the host and the port of `Host`. A port that is left out is the default
/// port of the origin's scheme, since a proxy may end TLS.
fn is_same_site(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let (origin_name, origin_port) = split_port(authority);
    let (name, port) = split_port(host);
    !name.is_empty()
        && origin_name.eq_ignore_ascii_case(name)
        && origin_port.unwrap_or(default_port) == port.unwrap_or(default_port)
}

/// Splits the port from a host name or an address.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            (name, Some(port))
        }
        _ => (host, None),
    }
}

/// Returns the session in the cookie, without a check of its signature.
pub(crate) fn session_cookie(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, SESSION_COOKIE)
}

/// Whether the request names a loopback host.
pub(crate) fn is_for_loopback(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.is_some_and(|host| is_loopback_name(split_port(host).0))
}

/// Whether a header says that a proxy passed the request on.
fn is_forwarded(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        ["forwarded", "x-real-ip", "via"].contains(&name) || name.starts_with("x-forwarded-")
    })
}

fn is_loopback_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
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

/// Responds with a 500 if a handler panics, and keeps the connection.
pub(crate) async fn catch_panic(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!("a request handler panicked");
            let detail = "the request failed because of a defect of the service; see its log";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
        }
    }
}

/// Makes every response with an error status a problem, except the login form.
fn as_problem(response: Response) -> Response {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_error = status.is_client_error() || status.is_server_error();
    if !is_error || content_type == PROBLEM_JSON || content_type.starts_with("text/html") {
        return response;
    }
    let (mut head, _) = response.into_parts();
    let detail = "the request can't be answered; /docs lists the paths, with their parameters";
    let (problem, body) = Problem::new(status, detail).into_response().into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.extend(problem.headers);
    Response::from_parts(head, body)
}

/// Makes errors problems, and adds the security headers to every response.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let mut response = as_problem(next.run(request).await);
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
    use axum::{Router, body::Body, middleware::from_fn, routing::get};
    use tower::ServiceExt;

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
        for (host, origin, expected) in [
            ("sync.example:8080", "https://sync.example:8080", true),
            ("sync.example", "https://sync.example", true),
            ("sync.example:443", "https://sync.example", true),
            ("sync.example", "https://sync.example:443", true),
            ("sync.example:80", "http://sync.example", true),
            ("sync.example", "http://sync.example:80", true),
            ("Sync.Example", "https://sync.example", true),
            ("[::1]:80", "http://[::1]", true),
            ("[::1]:8080", "http://[::1]:8080", true),
            ("sync.example:8080", "https://sync.example", false),
            ("sync.example:443", "http://sync.example", false),
            ("sync.example:80", "https://sync.example", false),
            ("sync.example", "https://sync.example:8443", false),
            ("sync.example:8080", "https://sync.example:8080.evil", false),
            ("sync.example", "https://sync.example@evil.example", false),
            ("sync.example", "https://evil.example", false),
            ("sync.example", "ftp://sync.example", false),
            ("sync.example", "null", false),
            ("", "https://", false),
        ] {
            let headers = headers_with(&[(header::HOST, host), (header::ORIGIN, origin)]);
            assert_eq!(require_same_origin(&headers).is_ok(), expected, "{host} {origin}");
        }
        assert!(require_same_origin(&headers_with(&[(header::HOST, "sync.example")])).is_ok());
    }

    #[test]
    fn only_direct_requests_of_loopback_peers_are_local() {
        let addr = |addr: &str| addr.parse().expect("an address");
        let identify = |listening_on, peer, name: &'static str| {
            let name = HeaderName::from_static(name);
            let headers = headers_with(&[(header::HOST, "localhost"), (name, "x")]);
            local(addr(listening_on), addr(peer), &headers).is_ok()
        };
        assert!(identify("127.0.0.1:80", "127.0.0.1:9", "accept"));
        assert!(identify("[::1]:80", "[::1]:9", "accept"));
        assert!(!identify("127.0.0.1:80", "10.0.0.1:9", "accept"));
        for listening_on in ["0.0.0.0:80", "[::]:80", "10.0.0.1:80"] {
            assert!(!identify(listening_on, "127.0.0.1:9", "accept"), "{listening_on}");
        }
        for name in ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"] {
            assert!(!identify("127.0.0.1:80", "127.0.0.1:9", name), "{name}");
        }
    }

    async fn panic() -> StatusCode {
        panic!("planted")
    }

    #[tokio::test]
    async fn a_panic_and_an_error_without_a_problem_become_problems() {
        let router = Router::new()
            .route("/panic", get(panic))
            .route("/bare", get(async || (StatusCode::BAD_GATEWAY, "plain text")))
            .route("/fine", get(async || "plain text"))
            .layer(from_fn(catch_panic))
            .layer(from_fn(super::headers));
        for (path, status, content_type) in [
            ("/panic", 500, PROBLEM_JSON),
            ("/bare", 502, PROBLEM_JSON),
            ("/nothing", 404, PROBLEM_JSON),
            ("/fine", 200, "text/plain; charset=utf-8"),
        ] {
            let request = axum::http::Request::builder().uri(path).body(Body::empty());
            let request = request.expect("a request");
            let response = router.clone().oneshot(request).await.expect("infallible");
            assert_eq!(response.status().as_u16(), status, "{path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], content_type, "{path}");
        }
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let headers = headers_with(&[(header::COOKIE, "a=1; customerio_sync_session=x.1.y; b=2")]);
        assert_eq!(session_cookie(&headers), Some("x.1.y"));
        assert_eq!(cookie(&headers, "session"), None);
    }
}
