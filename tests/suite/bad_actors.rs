//! Peers of the HTTP port, and messages, that mean harm: they are bounded, and everybody else is
//! served.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin::BasicProperties;
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

async fn is_well(world: &World, app: &App) {
    assert_eq!(world.get(app, STATS).await.0, 200);
}

/// Sends `request` and reads until the connection ends.
async fn exchange(app: &App, request: &[u8]) -> String {
    let mut peer = TcpStream::connect(app.http_addr()).await.expect("connected");
    // The server may have had enough before all is written.
    let _ = peer.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), peer.read_to_end(&mut answer)).await;
    // It may reset the connection, too: it has not read all.
    let _ = read.expect("the connection is ended");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn who_sends_a_head_byte_by_byte_is_cut_off_and_makes_room_for_others() {
    let world = World::new().await;
    let world = world
        .with("CUSTOMERIO_SYNC__HTTP__HEADER_TIMEOUT", "1s")
        .with("CUSTOMERIO_SYNC__HTTP__CONNECTIONS", "8");
    let app = world.start().await;
    let dawdle = async || {
        let peer = TcpStream::connect(app.http_addr()).await.expect("connected");
        let (mut from, mut to) = peer.into_split();
        let talk = async {
            let _ = to
                .write_all(
                    format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\nX-Slow: ").as_bytes(),
                )
                .await;
            while to.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let mut answer = String::new();
        tokio::select! {
            _ = from.read_to_string(&mut answer) => answer,
            () = talk => answer,
        }
    };
    let dawdlers = futures_util::future::join_all((0..24).map(|_| dawdle()));
    let (answers, ()) = tokio::join!(dawdlers, is_well(&world, &app));
    assert!(answers.iter().all(String::is_empty), "none of them was a request: {answers:?}");
    is_well(&world, &app).await;
    app.stop().await;
}

#[tokio::test]
async fn who_never_ends_a_body_gets_an_answer_and_is_cut_off() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__HTTP__REQUEST_TIMEOUT", "500ms");
    let app = world.start().await;
    let head = "POST /api/v1/signups/customerio/sync-failures/retry HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\n";
    for body in ["Content-Length: 1000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let answer = exchange(&app, format!("{head}{body}").as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("not done within 500ms"),
            "{answer}"
        );
    }
    is_well(&world, &app).await;
    app.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let world = World::new().await;
    let app = world.start().await;
    let start = format!("GET {STATS} HTTP/1.1\r\nHost: localhost\r\n");
    let headers = |count| (0..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>();
    let large = format!("{start}X-Large: {}", "x".repeat(32 * 1024));
    for head in [&large[..32 * 1024], &format!("{start}{}\r\n", headers(101))] {
        let answer = exchange(&app, head.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    // Whoever goes on sending may miss the answer: the connection is reset on the rest.
    for bomb in [
        format!("{start}X-Large: {}\r\n\r\n", "x".repeat(10_000_000)),
        format!("{start}{}", headers(500_000)),
    ] {
        let answer = exchange(&app, bomb.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        is_well(&world, &app).await;
    }
    app.stop().await;
}

#[tokio::test]
async fn a_million_nested_arrays_are_refused_over_http_and_parked_as_an_event() {
    let world = World::new().await;
    let app = world.start().await;
    let nested = |depth: usize| "[".repeat(depth);
    for body in [
        nested(1_000_000),
        format!("{{\"ids\":{}", nested(1_000_000)),
        format!("{{\"x\":{}", nested(1_000_000)),
    ] {
        let url =
            format!("http://{}/api/v1/signups/customerio/sync-failures/retry", app.http_addr());
        let request = world.http().post(url).header("content-type", "application/json").body(body);
        let answer = request.send().await.expect("an answer");
        assert!([400, 422].contains(&answer.status().as_u16()), "{}", answer.status());
    }

    // The largest that are still read, at a place that is not looked at and at those that are.
    let (signup, depth) = (Uuid::new_v4(), 200_000);
    let mut bodies = vec![nested(1_000_000), format!("{}{}", nested(100_000), "]".repeat(100_000))];
    let (first, second) = (submitted(signup), confirmed(signup));
    for (event, pointer) in [
        (&first, "/customer/email"),
        (&first, "/attributes"),
        (&first, "/elsewhere"),
        (&second, "/bet_slip"),
        (&second, "/bet_slip/selections"),
    ] {
        let mut event = event.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        event.pointer_mut(parent).expect("it is there")[key] = json!("HERE");
        bodies.push(event.to_string().replace("\"HERE\"", &nested(depth)));
    }
    let count = bodies.len();
    for body in &bodies {
        for routing_key in ["signup.submitted", "signup.extraction_confirmed"] {
            world
                .publish("signup.events", routing_key, body.as_bytes(), BasicProperties::default())
                .await;
        }
    }
    world.wait_for_failures(2 * count).await;
    let (status, list) = world.api(&app, "GET", "/unprocessable?limit=500", None).await;
    let items = list["items"].as_array().expect("a list");
    assert_eq!((status, items.len()), (200, 2 * count), "{list}");
    for item in items {
        let id = item["id"].as_str().expect("an id");
        assert_eq!(world.api(&app, "GET", &format!("/unprocessable/{id}"), None).await.0, 200);
    }
    world.submit(&first).await;
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn of_a_thousand_websocket_clients_as_many_as_allowed_are_served_and_the_others_are_told() {
    const ALLOWED: usize = 200;
    let world = World::new().await;
    let app = world.start().await;
    let url = format!("ws://{}/api/v1/signups/customerio/ws", app.http_addr());
    let attempts = stream::iter(0..1000)
        .map(|_| connect_async(&url))
        .buffer_unordered(50)
        .collect::<Vec<_>>()
        .await;
    let (mut clients, mut refused) = (Vec::new(), 0);
    for attempt in attempts {
        match attempt {
            Ok((client, _)) => clients.push(client),
            Err(tungstenite::Error::Http(answer)) if answer.status() == 503 => refused += 1,
            Err(other) => panic!("expected a client or 503, got {other}"),
        }
    }
    assert_eq!((clients.len(), refused), (ALLOWED, 1000 - ALLOWED));
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    for client in &mut clients {
        let frame = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let tungstenite::Message::Text(text) =
                    client.next().await.expect("it goes on").expect("a message")
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
    wait_for("a free place", || async { connect_async(&url).await.ok().map(drop) }).await;
    app.stop().await;
}

#[tokio::test]
async fn ten_thousand_guesses_of_a_token_are_hardly_looked_at_and_never_logged() {
    let world = World::new().await;
    let world = world
        .with("ADMIN_TOKENS", "ann:operator:right")
        .with("RUST_LOG", "debug")
        .with("HTTP_ADDR", "0.0.0.0:0");
    let mut process = world.spawn();
    let line: Value = serde_json::from_str(&process.wait_for_line("serving").await).expect("JSON");
    let port = line["http_addr"]
        .as_str()
        .and_then(|addr| addr.rsplit(':').next())
        .expect("an address")
        .to_owned();
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let with = |client: &reqwest::Client, token: &str| {
        client.get(url(STATS)).header("authorization", format!("Bearer {token}")).send()
    };
    let log_in = |client: &reqwest::Client, token: &str| {
        let form = client
            .post(url("/session"))
            .header("content-type", "application/x-www-form-urlencoded");
        form.body(format!("token={token}")).send()
    };
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client");
    let begun = log_in(&client, "right").await.expect("an answer");
    let session = begun.headers()["set-cookie"]
        .to_str()
        .ok()
        .and_then(|cookie| cookie.split(';').next())
        .expect("a session")
        .to_owned();

    let guesses = (0..10_000).map(|number| with(&client, &format!("guess-{number}")));
    let answers: Vec<_> = stream::iter(guesses)
        .buffer_unordered(8)
        .map(|answer| answer.expect("an answer"))
        .collect()
        .await;
    let counted =
        |status: u16| answers.iter().filter(|answer| answer.status().as_u16() == status).count();
    let (looked_at, limited) = (counted(401), counted(429));
    assert_eq!(looked_at + limited, 10_000);
    // The limit is 30 a minute; the guessing may take longer than one.
    assert!((30..1000).contains(&looked_at), "{looked_at} were looked at");

    // Nor is the right one from there, and the login form is no way around it; elsewhere all goes
    // on.
    let refused = with(&client, "right").await.expect("an answer");
    assert_eq!(refused.status().as_u16(), 429);
    let wait: u64 =
        refused.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(log_in(&client, "right").await.expect("an answer").status().as_u16(), 429);
    let known = client.get(url(STATS)).header("cookie", session).send().await.expect("an answer");
    assert_eq!(known.status().as_u16(), 200, "who is logged in works on");
    let elsewhere = reqwest::Client::builder()
        .local_address(std::net::IpAddr::from([127, 0, 0, 2]))
        .build()
        .expect("a client");
    assert_eq!(with(&elsewhere, "right").await.expect("an answer").status().as_u16(), 200);

    process.terminate().await;
    let log = process.log();
    assert!(!log.contains("guess-") && !log.contains("right"), "no token is in the log");
    assert!(
        log.contains("30 wrong tokens within 60s") && log.contains("\"peer\":\"127.0.0.1\""),
        "{log}"
    );
}
