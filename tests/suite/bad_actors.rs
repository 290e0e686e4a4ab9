//! Hostile HTTP peers and hostile messages: what they cost is bounded, and other clients are still
//! served.

use std::{net::IpAddr, time::Duration};

use futures_util::{StreamExt, stream};
use lapin::BasicProperties;
use reqwest::Response;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{connect_async, tungstenite};
use uuid::Uuid;

use crate::support::{World, confirmed, submitted, wait_for};
use customerio_sync::app::App;

const STATS: &str = "/api/v1/signups/customerio/stats";
/// Wrong tokens that one client presents.
const GUESSES: usize = 10_000;

async fn check_that_stats_are_served(world: &World, app: &App) {
    assert_eq!(world.get(app, STATS).await.0, 200);
}

/// Sends `request` and returns what arrives until the connection ends.
async fn exchange(app: &App, request: &[u8]) -> String {
    let mut peer = TcpStream::connect(app.http_addr()).await.expect("connected");
    // The server may close the connection before everything is written.
    let _ = peer.write_all(request).await;
    let mut response = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), peer.read_to_end(&mut response)).await;
    // The server may also reset the connection, since it has not read everything.
    let _ = read.expect("the connection ends in time");
    String::from_utf8_lossy(&response).into_owned()
}

#[tokio::test]
async fn slow_request_heads_time_out_and_free_their_connections() {
    let world = World::new().await;
    let world = world
        .with("CUSTOMERIO_SYNC__HTTP__HEADER_TIMEOUT", "1s")
        .with("CUSTOMERIO_SYNC__HTTP__CONNECTIONS", "8");
    let app = world.start().await;
    let send_slowly = async || {
        let peer = TcpStream::connect(app.http_addr()).await.expect("connected");
        let (mut from, mut to) = peer.into_split();
        let sending = async {
            let start = format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
            let _ = to.write_all(start.as_bytes()).await;
            while to.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut response = String::new();
        tokio::select! {
            _ = from.read_to_string(&mut response) => response,
            () = sending => response,
        }
    };
    let slow_clients = futures_util::future::join_all((0..24).map(|_| send_slowly()));
    let (responses, ()) = tokio::join!(slow_clients, check_that_stats_are_served(&world, &app));
    assert!(
        responses.iter().all(String::is_empty),
        "an incomplete request gets no response: {responses:?}"
    );
    check_that_stats_are_served(&world, &app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_body_that_never_ends_gets_a_503_and_is_disconnected() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__HTTP__REQUEST_TIMEOUT", "500ms");
    let app = world.start().await;
    let head = "POST /api/v1/signups/customerio/sync-failures/retry HTTP/1.1\r\n\
        Host: localhost\r\n\
        Content-Type: application/json\r\n";
    for body in ["Content-Length: 1000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let response = exchange(&app, format!("{head}{body}").as_bytes()).await;
        assert!(
            response.starts_with("HTTP/1.1 503") && response.contains("not completed within 500ms"),
            "{response}"
        );
    }
    check_that_stats_are_served(&world, &app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_request_head_that_is_too_large_is_rejected() {
    let world = World::new().await;
    let app = world.start().await;
    let start = format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\n");
    let headers = |count| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    let large = format!("{start}X-Large: {}", "x".repeat(32 * 1024));
    for head in [&large[..32 * 1024], &format!("{start}{}\r\n", headers(101))] {
        let response = exchange(&app, head.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 431"), "{response}");
    }
    // A client that keeps sending may miss the response, since the connection is reset.
    for head in [
        format!("{start}X-Large: {}\r\n\r\n", "x".repeat(10_000_000)),
        format!("{start}{}", headers(500_000)),
    ] {
        let response = exchange(&app, head.as_bytes()).await;
        assert!(response.is_empty() || response.starts_with("HTTP/1.1 431"), "{response}");
        check_that_stats_are_served(&world, &app).await;
    }
    app.stop().await;
}

/// The start of a JSON value that nests `depth` arrays.
fn nested(depth: usize) -> String {
    "[".repeat(depth)
}

/// Events that nest arrays deeply and are below the size limit: as a whole, in a field that the
/// parser ignores, and in fields that it reads.
fn nested_events(submission: &Value, confirmation: &Value) -> Vec<String> {
    let mut bodies = vec![nested(1_000_000), format!("{}{}", nested(100_000), "]".repeat(100_000))];
    for (event, pointer) in [
        (submission, "/customer/email"),
        (submission, "/attributes"),
        (submission, "/elsewhere"),
        (confirmation, "/bet_slip"),
        (confirmation, "/bet_slip/selections"),
    ] {
        let mut event = event.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        event.pointer_mut(parent).expect("the parent exists")[key] = json!("HERE");
        bodies.push(event.to_string().replace("\"HERE\"", &nested(200_000)));
    }
    bodies
}

#[tokio::test]
async fn a_million_nested_arrays_are_rejected_over_http_and_parked_as_events() {
    let world = World::new().await;
    let app = world.start().await;
    for body in [
        nested(1_000_000),
        format!("{{\"ids\":{}", nested(1_000_000)),
        format!("{{\"x\":{}", nested(1_000_000)),
    ] {
        let url =
            format!("http://{}/api/v1/signups/customerio/sync-failures/retry", app.http_addr());
        let request = world.http().post(url).header("content-type", "application/json").body(body);
        let response = request.send().await.expect("a response");
        assert!([400, 422].contains(&response.status().as_u16()), "{}", response.status());
    }

    let signup = Uuid::new_v4();
    let submission = submitted(signup);
    let bodies = nested_events(&submission, &confirmed(signup));
    let count = 2 * bodies.len();
    for body in &bodies {
        for routing_key in ["signup.submitted", "signup.extraction_confirmed"] {
            world
                .publish("signup.events", routing_key, body.as_bytes(), BasicProperties::default())
                .await;
        }
    }
    world.wait_for_failures(count).await;
    let (status, list) = world.api(&app, "GET", "/unprocessable?limit=500", None).await;
    let items = list["items"].as_array().expect("a list");
    assert_eq!((status, items.len()), (200, count), "{list}");
    for item in items {
        let id = item["id"].as_str().expect("an id");
        assert_eq!(world.api(&app, "GET", &format!("/unprocessable/{id}"), None).await.0, 200);
    }
    world.submit(&submission).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn websocket_clients_up_to_the_limit_are_served_and_others_get_a_503() {
    const CLIENTS_MAX: usize = 200;
    const ATTEMPTS: usize = 1000;
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    let attempts = stream::iter(0..ATTEMPTS)
        .map(|_| connect_async(&url))
        .buffer_unordered(50)
        .collect::<Vec<_>>()
        .await;
    let (mut clients, mut rejected) = (Vec::new(), 0);
    for attempt in attempts {
        match attempt {
            Ok((client, _)) => clients.push(client),
            Err(tungstenite::Error::Http(response)) if response.status() == 503 => rejected += 1,
            Err(other) => panic!("expected a client or 503, got {other}"),
        }
    }
    assert_eq!((clients.len(), rejected), (CLIENTS_MAX, ATTEMPTS - CLIENTS_MAX));
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    for client in &mut clients {
        let frame = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let tungstenite::Message::Text(text) =
                    client.next().await.expect("the connection is open").expect("a message")
                {
                    break text;
                }
            }
        });
        let frame: Value =
            serde_json::from_str(&frame.await.expect("a frame in time")).expect("JSON");
        assert_eq!(frame["signupId"], json!(signup));
    }
    drop(clients);
    wait_for("a free connection", || async { connect_async(&url).await.ok().map(drop) }).await;
    app.stop().await;
}

/// A client that presents tokens to a service on this machine.
struct TokenClient {
    http: reqwest::Client,
    port: String,
}

impl TokenClient {
    /// Connects from `local_address`, or from the default address without one.
    fn new(port: &str, local_address: Option<IpAddr>) -> Self {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .local_address(local_address)
            .build()
            .expect("a client");
        Self { http, port: port.to_owned() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Requests the stats with the credential in the header `name`.
    async fn stats(&self, name: &str, value: String) -> Response {
        self.http.get(self.url(STATS)).header(name, value).send().await.expect("a response")
    }

    async fn stats_with_token(&self, token: &str) -> Response {
        self.stats("authorization", format!("Bearer {token}")).await
    }

    /// Submits the login form.
    async fn log_in(&self, token: &str) -> Response {
        self.http
            .post(self.url("/session"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("token={token}"))
            .send()
            .await
            .expect("a response")
    }
}

/// Presents wrong tokens and checks that nearly all of them are rejected unchecked.
async fn check_that_guesses_are_throttled(client: &TokenClient) {
    let guesses = (0..GUESSES)
        .map(|number| async move { client.stats_with_token(&format!("guess-{number}")).await });
    let responses: Vec<_> = stream::iter(guesses).buffer_unordered(8).collect().await;
    let count = |status: u16| {
        responses.iter().filter(|response| response.status().as_u16() == status).count()
    };
    let (checked, throttled) = (count(401), count(429));
    assert_eq!(checked + throttled, GUESSES);
    // The limit is 30 per minute, and the guesses may take longer than a minute.
    assert!((30..1000).contains(&checked), "{checked} tokens were checked");
}

#[tokio::test]
async fn guessed_tokens_are_throttled_and_never_logged() {
    let world = World::new().await;
    let world = world
        .with("ADMIN_TOKENS", "ann:operator:right")
        .with("RUST_LOG", "debug")
        .with("HTTP_ADDR", "0.0.0.0:0");
    let mut process = world.spawn();
    let line: Value =
        serde_json::from_str(&process.wait_for_line("the service is running").await).expect("JSON");
    let (_, port) =
        line["http_addr"].as_str().and_then(|addr| addr.rsplit_once(':')).expect("an address");
    let client = TokenClient::new(port, None);
    let login = client.log_in("right").await;
    let session = login.headers()["set-cookie"]
        .to_str()
        .ok()
        .and_then(|cookie| cookie.split(';').next())
        .expect("a session");

    check_that_guesses_are_throttled(&client).await;

    // The right token from the same address is rejected as well, by the API and by the login form.
    let blocked = client.stats_with_token("right").await;
    assert_eq!(blocked.status().as_u16(), 429);
    let wait: u64 =
        blocked.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(client.log_in("right").await.status().as_u16(), 429);
    let with_session = client.stats("cookie", session.to_owned()).await;
    assert_eq!(with_session.status().as_u16(), 200, "an existing session still works");
    let elsewhere = TokenClient::new(port, Some(IpAddr::from([127, 0, 0, 2])));
    let response = elsewhere.stats_with_token("right").await;
    assert_eq!(response.status().as_u16(), 200, "another address is not blocked");

    process.terminate().await;
    let log = process.log();
    assert!(!log.contains("guess-") && !log.contains("right"), "no token is in the log");
    assert!(
        log.contains("30 wrong tokens within 60s") && log.contains("\"peer\":\"127.0.0.1\""),
        "{log}"
    );
}
