//! Access control: tokens, sessions, loopback peers, and the security headers for browsers.

use crate::support::World;
use customerio_sync::app::App;
use reqwest::{Method, Response, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const TOKENS: &str = "ann:operator:s3cret-of-ann,ben:viewer:s3cret-of-ben";
const STATS: &str = "/api/v1/signups/customerio/stats";
const CLEANUP: &str = "/api/v1/signups/customerio/cleanup";
const WS: &str = "/api/v1/signups/customerio/ws";

async fn send(
    world: &World,
    app: &App,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Response {
    let mut request = world.http().request(method, format!("http://{}{path}", app.http_addr()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.expect("a response")
}

/// A browser that has the operators' page open. It does not follow redirects.
struct Browser {
    client: reqwest::Client,
    /// The origin of the page.
    origin: String,
}

impl Browser {
    fn new(app: &App) -> Self {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        Self { client, origin: format!("http://{}", app.http_addr()) }
    }

    /// Submits the login form from a page of `origin`.
    async fn log_in(&self, token: &str, origin: &str) -> Response {
        self.client
            .post(format!("{}/session", self.origin))
            .header("origin", origin)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={token}"))
            .send()
            .await
            .expect("a response")
    }

    /// Sends a request with the session's cookie. With an `origin`, a page of that origin sends it.
    async fn send(
        &self,
        session: &str,
        method: Method,
        path: &str,
        origin: Option<&str>,
    ) -> Response {
        let url = format!("{}{path}", self.origin);
        let mut request = self.client.request(method, url).header("cookie", session);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.send().await.expect("a response")
    }
}

/// The value of the response's `Set-Cookie` header.
fn set_cookie(response: &Response) -> &str {
    response.headers()["set-cookie"].to_str().expect("text")
}

#[tokio::test]
async fn a_viewer_may_read_and_an_operator_may_act() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let (ann, ben) = ("Bearer s3cret-of-ann", "Bearer s3cret-of-ben");
    for (method, path, token, expected) in [
        (Method::GET, STATS, None, 401),
        (Method::GET, STATS, Some("Bearer wrong"), 401),
        (Method::GET, STATS, Some("Basic YW5uOnMzY3JldC1vZi1hbm4="), 401),
        (Method::GET, STATS, Some(ben), 200),
        (Method::GET, STATS, Some(ann), 200),
        (Method::POST, CLEANUP, None, 401),
        (Method::POST, CLEANUP, Some(ben), 403),
        (Method::POST, CLEANUP, Some(ann), 200),
        (Method::GET, WS, None, 401),
        (Method::GET, "/session", None, 401),
        (Method::GET, "/healthz", None, 200),
        (Method::GET, "/metrics", None, 200),
        (Method::GET, "/openapi.json", None, 200),
    ] {
        let headers: Vec<_> = token.iter().map(|token| ("authorization", *token)).collect();
        let response = send(&world, &app, method.clone(), path, &headers).await;
        assert_eq!(response.status().as_u16(), expected, "{method} {path} {token:?}");
        if expected == 401 || expected == 403 {
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers().contains_key("www-authenticate"), expected == 401);
        }
    }
    assert_eq!(world.audit("customerio_cleanup").await.len(), 0, "no job was stuck");
    app.stop().await;
}

#[tokio::test]
async fn the_audit_log_names_the_actor_and_no_log_contains_a_token() {
    let world = World::new()
        .await
        .with("ADMIN_TOKENS", TOKENS)
        .with("RUST_LOG", "debug")
        .with("HTTP_ADDR", "127.0.0.1:0");
    let mut process = world.spawn();
    let line = process.wait_for_line("the service is running").await;
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let signup = world.failed_signup().await;
    let url = format!(
        "http://{}/api/v1/signups/customerio/{signup}/retry",
        line["http_addr"].as_str().expect("an address")
    );
    for token in ["wrong-token", "s3cret-of-ann"] {
        world
            .http()
            .post(&url)
            .header("authorization", format!("Bearer {token}"))
            .send()
            .await
            .expect("a response");
    }
    assert_eq!(world.audit("customerio_manual_retry").await[0]["actor"], "ann");
    world.wait_for_job(signup, "initial", "completed").await;
    process.terminate().await;
    let log = process.log();
    assert!(!log.contains("s3cret") && !log.contains("wrong-token"), "{log}");
}

#[tokio::test]
async fn a_browser_logs_in_with_a_token_and_gets_a_session_cookie() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let response = browser.client.get(format!("{}/", browser.origin)).send().await;
    let page = response.expect("a response").text().await.expect("a page");
    assert!(page.contains("name=\"token\""), "the form asks for a token");

    let wrong_token = browser.log_in("wrong", &browser.origin).await;
    assert_eq!(wrong_token.status().as_u16(), 403);
    let other_site = browser.log_in("s3cret-of-ann", "https://evil.example").await;
    assert_eq!(other_site.status().as_u16(), 403);
    let response = browser.log_in("s3cret-of-ann", &browser.origin).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (303, &header::HeaderValue::from_static("/"))
    );
    let cookie = set_cookie(&response);
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && !cookie.contains("s3cret"),
        "{cookie}"
    );
    app.stop().await;
}

#[tokio::test]
async fn a_session_cannot_be_used_by_other_sites() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let response = browser.log_in("s3cret-of-ann", &browser.origin).await;
    let session = set_cookie(&response).split(';').next().expect("a cookie pair");
    let own_origin = Some(browser.origin.as_str());

    let response = browser.send(session, Method::GET, "/session", None).await;
    let identity = response.text().await.expect("JSON");
    assert!(identity.contains(r#""name":"ann","role":"operator""#), "{identity}");
    let response = browser.send(session, Method::POST, CLEANUP, own_origin).await;
    assert_eq!(response.status().as_u16(), 200);
    for origin in ["https://evil.example", "null"] {
        let response = browser.send(session, Method::POST, CLEANUP, Some(origin)).await;
        assert_eq!(response.status().as_u16(), 403, "{origin}");
    }
    let response = browser.send(session, Method::GET, "/", None).await;
    assert!(response.text().await.expect("a page").contains("/assets/app.js"));
    let response = browser.send(session, Method::POST, "/session/end", own_origin).await;
    assert!(set_cookie(&response).contains("Max-Age=0"));
    app.stop().await;
}

#[tokio::test]
async fn without_tokens_foreign_hosts_and_origins_are_rejected() {
    let world = World::new().await;
    let app = world.start().await;
    let status =
        |headers: Vec<(&'static str, &'static str)>, method: Method, path: &'static str| {
            let (world, app) = (&world, &app);
            async move { send(world, app, method, path, &headers).await.status().as_u16() }
        };
    assert_eq!(status(vec![], Method::GET, STATS).await, 200);
    assert_eq!(status(vec![("host", "localhost:80")], Method::GET, STATS).await, 200);
    assert_eq!(
        status(vec![("host", "evil.example")], Method::GET, STATS).await,
        403,
        "a foreign name that resolves to this address is rejected"
    );
    assert_eq!(status(vec![("host", "evil.example")], Method::GET, "/").await, 403);
    assert_eq!(status(vec![("host", "evil.example")], Method::GET, "/healthz").await, 200);
    assert_eq!(status(vec![("origin", "https://evil.example")], Method::POST, CLEANUP).await, 403);
    let handshake = vec![
        ("origin", "https://evil.example"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    assert_eq!(
        status(handshake, Method::GET, WS).await,
        403,
        "another site cannot open the WebSocket"
    );
    app.stop().await;
}

#[tokio::test]
async fn without_tokens_a_peer_outside_loopback_is_rejected() {
    let Some(address) = external_address() else { return };
    let world = World::new().await.with("HTTP_ADDR", "0.0.0.0:0");
    let app = world.start().await;
    let port = app.http_addr().port();
    let mut peer = TcpStream::connect((address, port)).await.expect("connected");
    let request = format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    peer.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    peer.read_to_string(&mut response).await.expect("read");
    assert!(
        response.starts_with("HTTP/1.1 403") && response.contains("ADMIN_TOKENS"),
        "{response}"
    );
    app.stop().await;
}

/// Returns the address from which this machine would reach another network, unless that is a
/// loopback address. Connecting a UDP socket sends nothing.
fn external_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

#[tokio::test]
async fn every_response_has_the_security_headers() {
    let world = World::new().await;
    let app = world.start().await;
    for path in ["/", "/assets/app.js", STATS, "/nothing", "/docs/", "/healthz"] {
        let response = send(&world, &app, Method::GET, path, &[]).await;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
                .to_owned()
        };
        assert!(
            header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"),
            "{path}"
        );
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "same-origin", "{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{path}");
    }
    app.stop().await;
}
