//! Who may do what: tokens, sessions, loopback; and what a browser may do with the answers.

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
    request.send().await.expect("an answer")
}

/// A client that keeps where it is sent to.
fn browser() -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client")
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
        let answer = send(&world, &app, method.clone(), path, &headers).await;
        assert_eq!(answer.status().as_u16(), expected, "{method} {path} {token:?}");
        if expected == 401 || expected == 403 {
            assert_eq!(answer.headers()["content-type"], "application/problem+json");
            assert_eq!(answer.headers().contains_key("www-authenticate"), expected == 401);
        }
    }
    assert_eq!(world.audit("customerio_cleanup").await.len(), 0, "nothing was stuck");
    app.stop().await;
}

#[tokio::test]
async fn the_audit_log_names_the_token_and_the_log_never_shows_it() {
    let world = World::new()
        .await
        .with("ADMIN_TOKENS", TOKENS)
        .with("RUST_LOG", "debug")
        .with("HTTP_ADDR", "127.0.0.1:0");
    let mut process = world.spawn();
    let line = process.wait_for_line("serving").await;
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
            .expect("an answer");
    }
    assert_eq!(world.audit("customerio_manual_retry").await[0]["actor"], "ann");
    world.wait_for_job(signup, "initial", "completed").await;
    process.terminate().await;
    let log = process.log();
    assert!(!log.contains("s3cret") && !log.contains("wrong-token"), "{log}");
}

#[tokio::test]
async fn a_browser_gets_a_session_that_other_sites_cannot_use() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let address = app.http_addr().to_string();
    let origin = format!("http://{address}");
    let url = |path: &str| format!("http://{address}{path}");
    let page = browser().get(url("/")).send().await.expect("an answer");
    assert!(
        page.text().await.expect("a page").contains("name=\"token\""),
        "the form asks for a token"
    );

    let log_in = |token: &'static str, origin: String| {
        let form = browser().post(url("/session")).header("origin", origin);
        form.header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={token}"))
            .send()
    };
    assert_eq!(log_in("wrong", origin.clone()).await.expect("an answer").status().as_u16(), 403);
    assert_eq!(
        log_in("s3cret-of-ann", "https://evil.example".to_owned())
            .await
            .expect("an answer")
            .status()
            .as_u16(),
        403
    );
    let answer = log_in("s3cret-of-ann", origin.clone()).await.expect("an answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (303, &header::HeaderValue::from_static("/"))
    );
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Strict")
            && !cookie.contains("s3cret"),
        "{cookie}"
    );
    let session = cookie.split(';').next().expect("a pair").to_owned();

    let with = |method: Method, path: &str, origin: Option<&str>| {
        let request = browser().request(method, url(path)).header("cookie", &session);
        let request = match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        };
        request.send()
    };
    let who =
        with(Method::GET, "/session", None).await.expect("an answer").text().await.expect("JSON");
    assert!(who.contains(r#""name":"ann","role":"operator""#), "{who}");
    assert_eq!(
        with(Method::POST, CLEANUP, Some(&origin)).await.expect("an answer").status().as_u16(),
        200
    );
    for origin in ["https://evil.example", "null"] {
        let answer = with(Method::POST, CLEANUP, Some(origin)).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 403, "{origin}");
    }
    let page = with(Method::GET, "/", None).await.expect("an answer").text().await.expect("a page");
    assert!(page.contains("/assets/app.js"));
    let answer = with(Method::POST, "/session/end", Some(&origin)).await.expect("an answer");
    assert!(answer.headers()["set-cookie"].to_str().expect("text").contains("Max-Age=0"));
    app.stop().await;
}

#[tokio::test]
async fn without_tokens_only_loopback_is_answered_and_only_by_its_name() {
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
        "a name that was made to point here"
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
    assert_eq!(status(handshake, Method::GET, WS).await, 403, "another site can't watch");
    app.stop().await;
}

#[tokio::test]
async fn a_peer_from_elsewhere_is_refused_without_tokens() {
    let Some(address) = own_address() else { return };
    let world = World::new().await.with("HTTP_ADDR", "0.0.0.0:0");
    let app = world.start().await;
    let port = app.http_addr().port();
    let mut peer = TcpStream::connect((address, port)).await.expect("connected");
    let request = format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    peer.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    peer.read_to_string(&mut answer).await.expect("read");
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("ADMIN_TOKENS"), "{answer}");
    app.stop().await;
}

/// An address of this machine that is not loopback; a socket that would reach the world has one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("198.51.100.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then_some(address)
}

#[tokio::test]
async fn every_answer_tells_browsers_to_be_careful() {
    let world = World::new().await;
    let app = world.start().await;
    for path in ["/", "/assets/app.js", STATS, "/nothing", "/docs/", "/healthz"] {
        let answer = send(&world, &app, Method::GET, path, &[]).await;
        let header = |name: &str| {
            answer
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
