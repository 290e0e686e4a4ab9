//! Hostile HTTP peers and hostile messages: what they cost is bounded, and other clients are still
//! served.

use std::time::Duration;

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
/// Wrong tokens that one client presents at the same time.
const GUESSES: usize = 300;
/// The right token.
const RIGHT: &str = "s3cret-of-the-operator";

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
    // A client that keeps sending may miss the response, since the connection is reset.
    let is_expected = |response: &String| {
        response.is_empty() || response.starts_with("HTTP/1.1 408 Request Timeout")
    };
    assert!(responses.iter().all(is_expected), "{responses:?}");
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
    fn new(port: &str) -> Self {
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
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

/// Presents wrong tokens at the same time, and checks that each is refused.
async fn guess(client: &TokenClient) -> Duration {
    let started = std::time::Instant::now();
    let guesses = (0..GUESSES)
        .map(|number| async move { client.stats_with_token(&format!("guess-{number}")).await });
    let responses = futures_util::future::join_all(guesses).await;
    let (mut delayed, mut refused) = (0, 0);
    for response in responses {
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        match response.status().as_u16() {
            401 => delayed += 1,
            429 => {
                let wait = response.headers()["retry-after"].to_str().expect("text");
                assert!((1..=60).contains(&wait.parse::<u64>().expect("seconds")), "{wait}");
                refused += 1;
            }
            other => panic!("expected 401 or 429, got {other}"),
        }
    }
    assert!(delayed >= 64 && refused > 0, "{delayed} delayed, {refused} refused at once");
    started.elapsed()
}

#[tokio::test]
async fn guesses_are_answered_slowly_and_right_tokens_at_once() {
    let world = World::new().await;
    let world = world
        .with("ADMIN_TOKENS", &format!("ann:operator:{RIGHT}"))
        .with("RUST_LOG", "debug")
        .with("HTTP_ADDR", "0.0.0.0:0");
    let mut process = world.spawn();
    let line: Value =
        serde_json::from_str(&process.wait_for_line("the service is running").await).expect("JSON");
    let (_, port) =
        line["http_addr"].as_str().and_then(|addr| addr.rsplit_once(':')).expect("an address");
    let client = TokenClient::new(port);
    let login = client.log_in(RIGHT).await;
    let session = login.headers()["set-cookie"]
        .to_str()
        .ok()
        .and_then(|cookie| cookie.split(';').next())
        .expect("a session");

    // Somebody else behind the same address keeps working meanwhile.
    let (guessing, working) = tokio::join!(guess(&client), async {
        let started = std::time::Instant::now();
        assert_eq!(client.stats_with_token(RIGHT).await.status().as_u16(), 200);
        assert_eq!(client.log_in(RIGHT).await.status().as_u16(), 303);
        assert_eq!(client.stats("cookie", session.to_owned()).await.status().as_u16(), 200);
        started.elapsed()
    });
    assert!(guessing >= Duration::from_secs(2), "{guessing:?}");
    assert!(working < guessing, "{working:?}, and {guessing:?} for the guesses");
    // After all these guesses, the right token is still accepted, by the API and by the form.
    assert_eq!(client.stats_with_token(RIGHT).await.status().as_u16(), 200);
    assert_eq!(client.log_in(RIGHT).await.status().as_u16(), 303);

    process.terminate().await;
    let log = process.log();
    assert!(!log.contains("guess-") && !log.contains(RIGHT), "no token is in the log");
    let refusals = log.lines().filter(|line| line.contains("a wrong token was refused")).count();
    assert_eq!(refusals, 29, "the log does not grow with the guesses");
    assert!(
        log.contains("30 wrong tokens; further ones are not logged")
            && log.contains("\"peer\":\"127.0.0.1\""),
        "{log}"
    );
}

/// Checks that a response is a problem with this status.
fn check_problem(response: &str, status: u16) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let head = head.to_lowercase();
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{status}: {response}");
    assert!(head.contains("content-type: application/problem+json"), "{status}: {response}");
    let problem: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(problem["status"], status);
    assert!(!problem["detail"].as_str().expect("a detail").is_empty(), "{response}");
}

#[tokio::test]
async fn every_error_is_a_problem_including_those_of_the_server_itself() {
    let world = World::new().await;
    let world = world
        .with("CUSTOMERIO_SYNC__HTTP__HEADER_TIMEOUT", "1s")
        .with("CUSTOMERIO_SYNC__HTTP__REQUEST_TIMEOUT", "500ms");
    let app = world.start().await;
    let api = "/api/v1/signups/customerio";
    let retry = format!("POST {api}/sync-failures/retry HTTP/1.1\r\nHost: localhost\r\n");
    let json = "Content-Type: application/json\r\nConnection: close\r\n";
    let close = "Host: localhost\r\nConnection: close\r\n\r\n";
    let large = format!("GET {STATS} HTTP/1.1\r\nX-Large: {}", "x".repeat(32 * 1024));
    let form = "Content-Type: text/plain\r\nContent-Length: 1\r\n";
    for (request, status) in [
        ("NONSENSE\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost : localhost\r\n\r\n".to_owned(), 400),
        (large[..32 * 1024].to_owned(), 431),
        (format!("GET {STATS} HTTP/1.1\r\nHost: local"), 408),
        (format!("GET /nothing HTTP/1.1\r\n{close}"), 404),
        (format!("DELETE {STATS} HTTP/1.1\r\n{close}"), 405),
        (format!("GET /docs/nothing HTTP/1.1\r\n{close}"), 404),
        (format!("GET {api}/jobs/nothing HTTP/1.1\r\n{close}"), 400),
        (format!("GET {STATS}?a=b HTTP/1.1\r\n{close}"), 400),
        (format!("GET {api}/ws HTTP/1.1\r\n{close}"), 426),
        (format!("{retry}{json}Content-Length: 2000000\r\n\r\n"), 413),
        (format!("{retry}{form}Connection: close\r\n\r\nx"), 415),
        (format!("{retry}{json}Content-Length: 10\r\n\r\n{{\"jobs\":1}}"), 422),
        (format!("{retry}{json}Content-Length: 9\r\n\r\n{{"), 503),
        (format!("POST /session HTTP/1.1\r\n{form}{close}x"), 415),
    ] {
        check_problem(&exchange(&app, request.as_bytes()).await, status);
    }
    // An idle connection is closed without a response.
    assert_eq!(exchange(&app, b"").await, "");
    app.stop().await;
}
