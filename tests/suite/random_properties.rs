//! Random properties and headers, published to the real service: no message ends its process or
//! its connections, and every neighbour is processed.

use std::time::{Duration, Instant};

use crate::support::{
    RawProperties, RawPublisher, Service, World, confirmed, long_string, short_string, submitted,
    wait_for,
};
use uuid::Uuid;

/// Messages per portion. Each has a neighbour.
const PORTION: usize = 100;
/// Names of headers that mean something to RabbitMQ or to this service.
const KNOWN_NAMES: [&str; 16] = [
    "x-job-id",
    "x-repaired",
    "x-reason",
    "x-original-exchange",
    "x-delivery-count",
    "x-death",
    "x-first-death-queue",
    "x-replay-of",
    "CC",
    "BCC",
    "traceparent",
    "tracestate",
    "cloudEvents:specversion",
    "cloudEvents:id",
    "cloudEvents_type",
    "cloudEvents:time",
];
/// Levels of tables and arrays within each other, apart from arrays that are far deeper.
const DEPTH_MAX: usize = 5;
/// The types of fields: of AMQP 0-9-1, of RabbitMQ, and two that do not exist.
const FIELD_TYPES: &[u8] = b"tbBsuIilLfdDSATFVxzq";

#[tokio::test(flavor = "multi_thread")]
async fn random_properties_harm_no_neighbour() {
    publish_portions(1, |portions| portions == 3).await;
}

/// Runs for RANDOM_PROPERTIES_SECONDS, as `./dev fuzz` requests.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as requested; run by `./dev fuzz`"]
#[expect(clippy::disallowed_methods, reason = "a test runs for a time")]
async fn random_properties_harm_no_neighbour_for_long() {
    let seconds = std::env::var("RANDOM_PROPERTIES_SECONDS").unwrap_or_default();
    let duration = Duration::from_secs(seconds.parse().expect("a number of seconds"));
    let (seed, began) = (fastrand::u64(..), Instant::now());
    println!("seed {seed}");
    let (random, refused) = publish_portions(seed, |_| began.elapsed() > duration).await;
    println!("{random} messages, of which RabbitMQ refused {refused}");
}

/// Publishes portions of random messages with neighbours until `is_enough`, which gets the number
/// of portions. Returns the number of random messages, and how many of them RabbitMQ refused.
async fn publish_portions(seed: u64, is_enough: impl Fn(usize) -> bool) -> (usize, usize) {
    let world = World::new().await;
    let mut service = world.serve();
    service.wait_until_ready().await;
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut portions, mut refused, mut neighbours) = (0, 0, 0);
    while !is_enough(portions) {
        tokio::task::block_in_place(|| refused += publish_portion(&world, &mut rng));
        portions += 1;
        neighbours += i64::try_from(PORTION).expect("small");
        wait_for("the neighbours to be completed", || async {
            let completed = "
                SELECT count(*)
                FROM signup_customerio_sync_jobs j
                JOIN signups s ON s.id = signup_id
                WHERE operator_name = 'neighbour' AND j.status = 'completed'";
            (world.count(completed).await == neighbours).then_some(())
        })
        .await;
        let (status, health) = service.get("/healthz").await.expect("the process lives");
        assert_eq!(status, 200, "{health}");
    }
    assert_eq!(reconnects(&service).await, "0", "no message ended the connection");
    assert!(service.process.terminate().await.success());
    (portions * PORTION, refused)
}

/// Number of times that the service had to open its connection again.
async fn reconnects(service: &Service) -> String {
    let text = reqwest::get(service.url("/metrics")).await.expect("served").text().await;
    let text = text.expect("a body");
    let start = r#"customerio_sync_reconnects_total{connection="consume"} "#;
    text.lines().find_map(|line| line.strip_prefix(start)).expect("a metric").to_owned()
}

/// Publishes random messages, each followed by a neighbour. Returns how many RabbitMQ refused.
fn publish_portion(world: &World, rng: &mut fastrand::Rng) -> usize {
    let mut publisher = RawPublisher::connect(&world.amqp_url);
    let mut refused = 0;
    for _ in 0..PORTION {
        let signup = Uuid::from_u128(rng.u128(..));
        let (exchange, key, body) = match rng.u8(0..10) {
            0 => ("customerio-sync.failed", "", submitted(signup)),
            1 => ("customerio-sync.jobs", "", submitted(signup)),
            2 => ("signup.updates", "sign_up.customerio_synced", submitted(signup)),
            3 | 4 => ("signup.events", "signup.extraction_confirmed", confirmed(signup)),
            _ => ("signup.events", "signup.submitted", submitted(signup)),
        };
        let properties = random_properties(rng);
        if !publisher.try_publish(
            exchange,
            key.as_bytes(),
            &properties,
            body.to_string().as_bytes(),
        ) {
            refused += 1;
            publisher = RawPublisher::connect(&world.amqp_url);
        }
        let mut neighbour = submitted(Uuid::from_u128(rng.u128(..)));
        neighbour["operator_name"] = "neighbour".into();
        let persistent = RawProperties { flags: 1 << 12, bytes: vec![2] };
        let body = neighbour.to_string();
        publisher.publish("signup.events", b"signup.submitted", &persistent, body.as_bytes());
    }
    refused
}

/// Random properties, most of them well-formed.
fn random_properties(rng: &mut fastrand::Rng) -> RawProperties {
    let mut properties = RawProperties::default();
    // In the order of the flags: content type, content encoding, headers, delivery mode, priority,
    // correlation id, reply to, expiration, message id, timestamp, type, user id, app id and
    // cluster id.
    for (place, kind) in b"sstbbsssstssss".iter().enumerate() {
        let is_expiration_or_user = matches!(place, 7 | 11);
        if rng.f32() > if is_expiration_or_user { 0.05 } else { 0.4 } {
            continue;
        }
        properties.flags |= 1 << (15 - place);
        properties.bytes.extend(match (kind, place) {
            (b's', _) => short_string(&random_text(rng)),
            (b'b', _) => vec![rng.u8(0..4)],
            (_, 2) => long_string(&random_table(rng, 0)),
            _ => rng.u64(..1 << 40).to_be_bytes().to_vec(),
        });
    }
    if rng.f32() < 0.03 && !properties.bytes.is_empty() {
        let at = rng.usize(..properties.bytes.len());
        properties.bytes[at] = rng.u8(..);
    }
    properties
}

fn random_table(rng: &mut fastrand::Rng, depth: usize) -> Vec<u8> {
    let mut table = Vec::new();
    for _ in 0..rng.usize(0..4) {
        let name = if rng.bool() {
            KNOWN_NAMES[rng.usize(..KNOWN_NAMES.len())].as_bytes().to_vec()
        } else {
            random_text(rng)
        };
        table.extend(short_string(&name));
        table.extend(random_field(rng, depth));
    }
    table
}

fn random_field(rng: &mut fastrand::Rng, depth: usize) -> Vec<u8> {
    let last = if rng.f32() < 0.02 { FIELD_TYPES.len() } else { FIELD_TYPES.len() - 2 };
    let kind = FIELD_TYPES[rng.usize(..last)];
    let mut field = vec![kind];
    field.extend(match kind {
        b't' | b'b' | b'B' => vec![rng.u8(..)],
        b's' | b'u' => rng.u16(..).to_be_bytes().to_vec(),
        b'I' | b'i' | b'f' => rng.u32(..).to_be_bytes().to_vec(),
        b'l' | b'L' | b'd' | b'T' => rng.u64(..).to_be_bytes().to_vec(),
        b'D' => [&[rng.u8(..)], &rng.u32(..).to_be_bytes()[..]].concat(),
        b'S' | b'x' => long_string(&random_text(rng)),
        b'A' => long_string(&random_array(rng, depth + 1)),
        b'F' if depth < DEPTH_MAX => long_string(&random_table(rng, depth + 1)),
        b'F' => long_string(&[]),
        _ => Vec::new(),
    });
    field
}

/// The fields of an array. Some are arrays within arrays, deeper than what is decoded.
fn random_array(rng: &mut fastrand::Rng, depth: usize) -> Vec<u8> {
    if rng.f32() < 0.05 {
        let mut nested = vec![b'V'];
        for _ in 0..rng.usize(0..400) {
            nested = [b"A", &long_string(&nested)[..]].concat();
        }
        return nested;
    }
    let items = if depth < DEPTH_MAX { rng.usize(0..3) } else { 0 };
    (0..items).flat_map(|_| random_field(rng, depth)).collect()
}

/// Text as others send it: ASCII, UTF-8, Latin-1, control characters, or any bytes.
fn random_text(rng: &mut fastrand::Rng) -> Vec<u8> {
    let length = if rng.f32() < 0.02 { 255 } else { rng.usize(0..20) };
    match rng.u8(0..6) {
        0 => (0..length).map(|_| rng.u8(..)).collect(),
        1 => "é€\u{10348}".repeat(length / 9).into_bytes(),
        2 => b"caf\xe9".to_vec(),
        3 => b"a\0b".to_vec(),
        _ => (0..length).map(|_| rng.alphanumeric() as u8).collect(),
    }
}
