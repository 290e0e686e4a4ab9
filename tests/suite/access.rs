//! Access control: tokens, sessions, local requests, masks, and the security headers for browsers.

use crate::support::{Servers, World, submitted, wait_for};
use customerio_sync::app::App;
use futures_util::StreamExt;
use reqwest::{Method, Response, header};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};
use uuid::Uuid;

const TOKENS: &str = "ann:operator:the-s3cret-of-ann,ben:viewer:the-s3cret-of-ben";
const ANN: &str = "the-s3cret-of-ann";
const BEN: &str = "the-s3cret-of-ben";
const ANN_BEARER: &str = "Bearer the-s3cret-of-ann";
const BEN_BEARER: &str = "Bearer the-s3cret-of-ben";
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

    /// Logs in, and returns the cookie of the session.
    async fn session(&self, token: &str) -> String {
        let response = self.log_in(token, &self.origin).await;
        assert_eq!(response.status().as_u16(), 303);
        set_cookie(&response).split(';').next().expect("a cookie pair").to_owned()
    }

    /// Opens a WebSocket with the session's cookie.
    async fn watch(&self, session: &str) -> Watcher {
        Watcher::connect(&self.origin, "cookie", session).await
    }

    /// Sends a GET request with the session's cookie, and returns the status.
    async fn get(&self, session: &str, path: &str) -> u16 {
        self.send(session, Method::GET, path, None).await.status().as_u16()
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

/// A client of the live feed.
struct Watcher(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Watcher {
    /// Connects with a credential in the header `name`.
    async fn connect(origin: &str, name: &'static str, value: &str) -> Self {
        let url = format!("{origin}{WS}").replace("http:", "ws:");
        let mut request = url.into_client_request().expect("a request");
        request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
        Self(connect_async(request).await.expect("a WebSocket").0)
    }

    async fn next(&mut self) -> Message {
        let next = tokio::time::timeout(Duration::from_secs(60), self.0.next()).await;
        next.expect("a frame in time").expect("the connection is open").expect("a frame")
    }

    /// Waits until the service closes the connection, and returns the code and the reason.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Message::Close(Some(frame)) = self.next().await {
                return (frame.code.into(), frame.reason.as_str().to_owned());
            }
        }
    }

    async fn next_json(&mut self) -> Value {
        loop {
            if let Message::Text(text) = self.next().await {
                return serde_json::from_str(&text).expect("JSON");
            }
        }
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
    let (ann, ben) = (ANN_BEARER, BEN_BEARER);
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
    for token in ["wrong-token", ANN] {
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
    let other_site = browser.log_in(ANN, "https://evil.example").await;
    assert_eq!(other_site.status().as_u16(), 403);
    let response = browser.log_in(ANN, &browser.origin).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["location"]),
        (303, &header::HeaderValue::from_static("/"))
    );
    let cookie = set_cookie(&response);
    assert!(
        cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Lax")
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
    let response = browser.log_in(ANN, &browser.origin).await;
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
        401,
        "a foreign name that resolves to this address is rejected"
    );
    assert_eq!(status(vec![("host", "evil.example")], Method::GET, "/").await, 401);
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
async fn without_tokens_a_request_through_a_proxy_is_not_local() {
    let world = World::new().await;
    let app = world.start().await;
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-anything", "1"),
        ("forwarded", "for=203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
        ("via", "1.1 proxy"),
    ] {
        for path in [STATS, "/", "/session"] {
            let headers = [("host", "localhost"), (name, value)];
            let response = send(&world, &app, Method::GET, path, &headers).await;
            assert_eq!(response.status().as_u16(), 401, "{path} {name}");
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            let problem = response.text().await.expect("a problem");
            assert!(problem.contains("set ADMIN_TOKENS"), "{problem}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn without_tokens_nobody_has_access_beyond_loopback() {
    let world = World::new().await.with("HTTP_ADDR", "0.0.0.0:0");
    let app = world.start().await;
    let port = app.http_addr().port();
    let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
    for address in external_address().into_iter().chain([loopback]) {
        let mut peer = TcpStream::connect((address, port)).await.expect("connected");
        let request =
            format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        peer.write_all(request.as_bytes()).await.expect("written");
        let mut response = String::new();
        peer.read_to_string(&mut response).await.expect("read");
        assert!(
            response.starts_with("HTTP/1.1 401") && response.contains("set ADMIN_TOKENS"),
            "{address}: {response}"
        );
    }
    app.stop().await;
}

#[tokio::test]
async fn the_log_says_at_the_start_who_has_access() {
    let world = World::new().await;
    for (variable, value, expected) in [
        ("HTTP_ADDR", "127.0.0.1:0", "answer only loopback peers"),
        ("HTTP_ADDR", "0.0.0.0:0", "answer nobody; set ADMIN_TOKENS"),
        ("ADMIN_TOKENS", TOKENS, "require a token of ADMIN_TOKENS"),
    ] {
        let process = world.spawn_with(&[(variable, value.to_owned())]);
        process.wait_for_line(expected).await;
    }
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
async fn the_default_port_of_a_site_is_the_same_site() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let session = Browser::new(&app).session(ANN).await;
    for (host, origin, expected) in [
        ("sync.example:443", "https://sync.example", 200),
        ("sync.example", "https://sync.example:443", 200),
        ("sync.example:80", "http://sync.example", 200),
        ("SYNC.example", "https://sync.example", 200),
        ("sync.example:443", "http://sync.example", 403),
        ("sync.example", "https://sync.example:8443", 403),
    ] {
        let forged = ("x-forwarded-host", "sync.example:8443");
        let headers = [("host", host), ("origin", origin), ("cookie", session.as_str()), forged];
        let response = send(&world, &app, Method::POST, CLEANUP, &headers).await;
        assert_eq!(response.status().as_u16(), expected, "{host} {origin}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_logout_ends_a_session_and_its_websockets_on_every_replica() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let (first, second) = tokio::join!(world.start(), world.start());
    let (at_first, at_second) = (Browser::new(&first), Browser::new(&second));
    let session = at_first.session(ANN).await;
    let other = at_first.session(ANN).await;
    assert_eq!(at_second.get(&session, "/session").await, 200, "the replicas share the salt");
    let mut watchers = [at_first.watch(&session).await, at_second.watch(&session).await];
    let mut of_other = at_second.watch(&other).await;

    let logout = at_first.send(&session, Method::DELETE, "/session", Some(&at_first.origin)).await;
    assert_eq!(logout.status().as_u16(), 204);
    assert!(set_cookie(&logout).contains("Max-Age=0"));
    assert_eq!(at_first.get(&session, "/session").await, 401, "this replica knows at once");
    for watcher in &mut watchers {
        assert_eq!(watcher.closed().await, (1008, "the session was ended".to_owned()));
    }
    wait_for("the other replica to refuse the session", || async {
        (at_second.get(&session, "/session").await == 401).then_some(())
    })
    .await;

    // Another session of the same token continues.
    assert_eq!(at_second.get(&other, "/session").await, 200);
    world.submit(&submitted(Uuid::new_v4())).await;
    assert_eq!(of_other.next_json().await["type"], "sign_up.customerio_synced");

    // A replica that starts later refuses the ended session as well.
    let third = world.start().await;
    assert_eq!(Browser::new(&third).get(&session, "/session").await, 401);
    tokio::join!(first.stop(), second.stop(), third.stop());
}

#[tokio::test]
async fn a_logout_by_the_form_or_from_another_site_is_checked() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let session = browser.session(BEN).await;
    for (method, path) in [(Method::DELETE, "/session"), (Method::POST, "/session/end")] {
        let response = browser.send(&session, method, path, Some("https://evil.example")).await;
        assert_eq!(response.status().as_u16(), 403, "{path}");
    }
    assert_eq!(browser.get(&session, "/session").await, 200);
    let own_origin = Some(browser.origin.as_str());
    let response = browser.send(&session, Method::POST, "/session/end", own_origin).await;
    assert_eq!(response.status().as_u16(), 303);
    assert_eq!(browser.get(&session, "/session").await, 401);
    let repeated = browser.send(&session, Method::DELETE, "/session", own_origin).await;
    assert_eq!(repeated.status().as_u16(), 204);
    assert_eq!(world.count("SELECT count(*) FROM ended_sessions").await, 1);
    app.stop().await;
}

#[tokio::test]
async fn a_session_of_another_database_is_refused() {
    let (one, another) = tokio::join!(World::new(), World::new());
    let (one, another) = (one.with("ADMIN_TOKENS", TOKENS), another.with("ADMIN_TOKENS", TOKENS));
    let (at_one, at_another) = tokio::join!(one.start(), another.start());
    let session = Browser::new(&at_one).session(ANN).await;
    assert_eq!(Browser::new(&at_one).get(&session, STATS).await, 200);
    assert_eq!(
        Browser::new(&at_another).get(&session, STATS).await,
        401,
        "the token alone does not make a signature"
    );
    tokio::join!(at_one.stop(), at_another.stop());
}

#[tokio::test]
async fn replaced_tokens_end_the_access_of_the_removed_ones() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let (of_ann, of_ben) = (browser.session(ANN).await, browser.session(BEN).await);
    let mut removed = [
        browser.watch(&of_ben).await,
        Watcher::connect(&browser.origin, "authorization", BEN_BEARER).await,
    ];
    let mut kept = Watcher::connect(&browser.origin, "authorization", ANN_BEARER).await;

    let tokens = format!("ann:operator:{ANN},cleo:viewer:the-s3cret-of-cleo");
    app.tokens().replace(tokens.parse().expect("tokens"));
    for watcher in &mut removed {
        assert_eq!(watcher.closed().await, (1008, "the token was removed or changed".to_owned()));
    }
    assert_eq!(browser.get(&of_ben, "/session").await, 401);
    assert_eq!(browser.get(&of_ann, "/session").await, 200);
    for (bearer, expected) in
        [(BEN_BEARER, 401), (ANN_BEARER, 200), ("Bearer the-s3cret-of-cleo", 200)]
    {
        let headers = [("authorization", bearer)];
        let response = send(&world, &app, Method::GET, STATS, &headers).await;
        assert_eq!(response.status().as_u16(), expected, "{bearer}");
    }
    world.submit(&submitted(Uuid::new_v4())).await;
    assert_eq!(kept.next_json().await["type"], "sign_up.customerio_synced");

    app.tokens().replace("".parse().expect("an empty list"));
    assert_eq!(kept.closed().await.0, 1008);
    let response = send(&world, &app, Method::GET, STATS, &[]).await;
    assert_eq!(response.status().as_u16(), 401, "an empty list does not open the service");
    app.stop().await;
}

#[tokio::test]
async fn without_a_database_logins_wait_and_tokens_still_work() {
    let world = World::new()
        .await
        .with("ADMIN_TOKENS", TOKENS)
        .with("DATABASE_URL", "postgres://127.0.0.1:1/nowhere")
        .with("CUSTOMERIO_SYNC__DATABASE__MIGRATE", "false")
        .with("CUSTOMERIO_SYNC__LIFECYCLE__GRACE", "1s");
    let app = world.start_waiting().await;
    let browser = Browser::new(&app);
    let login = browser.log_in(ANN, &browser.origin).await;
    assert_eq!(login.status().as_u16(), 503);
    assert_eq!(login.headers()["content-type"], "application/problem+json");
    let wrong = browser.log_in("wrong", &browser.origin).await;
    assert_eq!(wrong.status().as_u16(), 403);
    let headers = [("authorization", ANN_BEARER)];
    let response = send(&world, &app, Method::GET, "/session", &headers).await;
    assert_eq!(response.status().as_u16(), 200);
    app.stop().await;
}

/// Lets the database of the world accept connections, or ends them all and refuses new ones.
async fn set_database_is_open(world: &World, is_open: bool) {
    // The database has the name of the virtual host.
    let database = &world.vhost;
    let mut admin =
        <sqlx::PgConnection as sqlx::Connection>::connect(&Servers::shared().database_url)
            .await
            .expect("PostgreSQL answers");
    let change = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {is_open}");
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = '{database}' AND NOT {is_open}"
    );
    for sql in [change, end] {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await.expect("executed");
    }
}

#[tokio::test]
async fn sessions_outlive_an_outage_of_the_database() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let session = browser.session(ANN).await;
    set_database_is_open(&world, false).await;
    assert_eq!(browser.get(&session, "/session").await, 200);
    // The salt is in memory, so that a login works as well.
    let another = browser.session(BEN).await;
    assert_eq!(browser.get(&another, "/session").await, 200);
    let own_origin = Some(browser.origin.as_str());
    let logout = browser.send(&session, Method::DELETE, "/session", own_origin).await;
    assert_eq!(logout.status().as_u16(), 503, "the other replicas can't know of it yet");
    assert_eq!(browser.get(&session, "/session").await, 401);
    set_database_is_open(&world, true).await;
    wait_for("the logout to be recorded", || async {
        let logout = browser.send(&session, Method::DELETE, "/session", own_origin).await;
        (logout.status().as_u16() == 204).then_some(())
    })
    .await;
    assert_eq!(world.count("SELECT count(*) FROM ended_sessions").await, 1);
    app.stop().await;
}

/// The personal data of the masked events.
const PERSONAL: [&str; 4] = ["zoe.quist@example.com", "Zoe", "Quist", "+15550199"];

/// Creates a failed job of Zoe Quist, and an unprocessable message about her. Returns the job.
async fn fail_for_zoe(world: &World) -> String {
    let signup = Uuid::new_v4();
    let mut event = submitted(signup);
    event["customer"] = json!({
        "email": "zoe.quist@example.com",
        "first_name": "Zoe",
        "last_name": "Quist",
        "phone": "+15550199",
    });
    world.fault(json!({ "kind": "status", "status": 422, "calls": 1 })).await;
    world.submit(&event).await;
    let job = world.wait_for_job(signup, "initial", "failed").await;
    event["attributes"] = json!({ "zoe.quist@example.com": [] });
    world.submit(&event).await;
    world.wait_for_failures(2).await;
    // Servers may quote what they refuse.
    let sql = "UPDATE signup_customerio_sync_jobs
        SET error_message = 'refused zoe.quist@example.com, \"Zoe Quist\", +15550199'
        WHERE status = 'failed'";
    sqlx::query(sql).execute(&world.pool).await.expect("updated");
    job["id"].as_str().expect("an id").to_owned()
}

/// Returns the personal data that a text contains.
fn personal_data(text: &str) -> Vec<&'static str> {
    PERSONAL.into_iter().filter(|data| text.contains(*data)).collect()
}

#[tokio::test]
async fn a_viewer_and_a_browser_get_personal_data_masked() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let job = fail_for_zoe(&world).await;
    let api = "/api/v1/signups/customerio";
    let headers = [("authorization", ANN_BEARER)];
    let messages = send(&world, &app, Method::GET, &format!("{api}/unprocessable"), &headers).await;
    let messages: Value =
        serde_json::from_str(&messages.text().await.expect("a body")).expect("JSON");
    let message = messages["items"][0]["id"].as_str().expect("an id");

    let browser = Browser::new(&app);
    let session = browser.session(ANN).await;
    for path in [
        "/sync-failures".to_owned(),
        "/failure-groups".to_owned(),
        format!("/jobs/{job}"),
        "/unprocessable".to_owned(),
        format!("/unprocessable/{message}"),
        "/bulk-retries".to_owned(),
    ] {
        for masked in ["", "?masked=false"] {
            let path = format!("{api}{path}{masked}");
            for (name, value) in [("authorization", BEN_BEARER), ("cookie", session.as_str())] {
                let response = send(&world, &app, Method::GET, &path, &[(name, value)]).await;
                let text = response.text().await.expect("a body");
                assert_eq!(personal_data(&text), Vec::<&str>::new(), "{path} {name}: {text}");
            }
        }
    }

    // An operator gets everything over a token, and in a browser after a reveal.
    let whole = format!("{api}/jobs/{job}");
    let response = send(&world, &app, Method::GET, &whole, &headers).await;
    assert_eq!(personal_data(&response.text().await.expect("a body")), PERSONAL);
    let own_origin = Some(browser.origin.as_str());
    let path = format!("{api}/unprocessable/{message}/reveal");
    let revealed = browser.send(&session, Method::POST, &path, own_origin).await;
    assert_eq!(personal_data(&revealed.text().await.expect("a body")), PERSONAL);
    let audit = world.audit("customerio_reveal").await;
    assert_eq!(
        (&audit[0]["actor"], &audit[0]["details"]),
        (&json!("ann"), &json!({ "failureId": message }))
    );
    app.stop().await;
}

#[tokio::test]
async fn a_viewer_searches_by_whole_addresses_and_names_only() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    fail_for_zoe(&world).await;
    for (search, as_viewer) in [
        ("zoe.quist@example.com", 1),
        ("ZOE.QUIST@EXAMPLE.COM", 1),
        ("zoe+quist", 1),
        ("zoe.quist@example", 0),
        ("zoe", 0),
        ("quist", 0),
        ("z", 0),
    ] {
        for (bearer, expected) in [(BEN_BEARER, as_viewer), (ANN_BEARER, 1)] {
            let path = format!("/api/v1/signups/customerio/sync-failures?search={search}");
            let headers = [("authorization", bearer)];
            let response = send(&world, &app, Method::GET, &path, &headers).await;
            let list: Value =
                serde_json::from_str(&response.text().await.expect("a body")).expect("JSON");
            assert_eq!(list["total"], expected, "{search} {bearer}");
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn frames_are_masked_for_viewers_and_browsers() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let browser = Browser::new(&app);
    let session = browser.session(ANN).await;
    let mut viewer = Watcher::connect(&browser.origin, "authorization", BEN_BEARER).await;
    let mut page = browser.watch(&session).await;
    let mut operator = Watcher::connect(&browser.origin, "authorization", ANN_BEARER).await;
    let mut event = submitted(Uuid::new_v4());
    event["customer"] = json!({ "email": "zoe.quist@example.com" });
    world.submit(&event).await;
    for (watcher, expected) in [
        (&mut viewer, "z***@e***.com"),
        (&mut page, "z***@e***.com"),
        (&mut operator, "zoe.quist@example.com"),
    ] {
        assert_eq!(watcher.next_json().await["contactId"], expected);
    }
    app.stop().await;
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
