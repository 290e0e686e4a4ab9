//! Chaos tests: several replicas of the real program work on real servers while faults of every
//! kind are injected. When the faults have stopped, nothing is lost and nothing is duplicated.
//!
//! The seed decides which faults are injected, and in which order. How they coincide with the work
//! depends on the machine. `./dev chaos` runs rounds with new seeds, or with a given one.

#![expect(clippy::disallowed_methods, reason = "tests start now")]

mod check;
mod cluster;
mod database;
mod failover;
mod fault;
mod load;
mod profiles;
mod proxy;
mod stage;
#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the suite uses more of it")]
mod support;
mod upgrade;

use std::time::{Duration, Instant};

use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::json;

use cluster::Cluster;
use database::{Database, Replication};
use fault::Fault;
use load::Load;
use stage::Stage;
use support::{World, root};

const REPLICAS: usize = 3;
const SIGNUPS: usize = 300;
/// Time during which a round publishes messages and injects faults.
const ROUND_DURATION: Duration = Duration::from_secs(15);
/// Duration of a call in a round, in milliseconds: long enough that faults find jobs in flight.
const CALL_LATENCY_MS: u64 = 200;
/// Time during which messages are published while the nodes of a cluster fail.
const CLUSTER_ROUND_DURATION: Duration = Duration::from_secs(60);
const FAILURE_QUEUE: &str = "customerio-sync.failed";
/// The queue that collects the outcomes of a round.
const OUTCOME_QUEUE: &str = "chaos.outcomes";
/// Maximum times that idle replicas are ended while they leave copies.
const IDLE_ENDS_MAX: usize = 3;
/// Maximum number of violations that are printed per round.
const PRINTED_VIOLATIONS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn three_rounds_of_faults_lose_and_duplicate_nothing() {
    run_rounds(&[1, 2, 3]).await;
}

/// Three nodes: the leader of every queue is killed, and nodes are partitioned from the others.
#[tokio::test(flavor = "multi_thread")]
async fn killed_leaders_and_partitions_of_a_cluster_lose_and_duplicate_nothing() {
    let servers = (Cluster::start(3).await, Database::start(Replication::Synchronous).await);
    let round = run_round(1, servers, CLUSTER_ROUND_DURATION, inject_cluster_faults).await;
    round.assert_no_violations();
}

/// The rounds that `./dev chaos` requests by its arguments, in CHAOS_ARGUMENTS.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as the number of rounds demands; run by `./dev chaos`"]
async fn the_requested_rounds_of_faults_lose_and_duplicate_nothing() {
    let (mut seed, mut rounds) = (fastrand::u64(..1 << 32), 1);
    let arguments = std::env::var("CHAOS_ARGUMENTS").unwrap_or_default();
    let words: Vec<_> = arguments.split_whitespace().collect();
    for option in words.chunks(2) {
        match (option, option.last().and_then(|number| number.parse().ok())) {
            (["--seed", _], Some(number)) => seed = number,
            (["--rounds", _], Some(number)) => rounds = number,
            _ => panic!("{arguments:?}: expected --seed N or --rounds N"),
        }
    }
    run_rounds(&(seed..seed + rounds).collect::<Vec<_>>()).await;
}

/// Runs one round per seed on the same servers, and fails if any of them has violations.
async fn run_rounds(seeds: &[u64]) {
    let mut servers = (Cluster::start(1).await, Database::start(Replication::Synchronous).await);
    let mut failed_seeds = Vec::new();
    for &seed in seeds {
        let began = Instant::now();
        let round = run_round(seed, servers, ROUND_DURATION, inject_random_faults).await;
        servers = round.servers;
        println!(
            "seed {seed}: {}, {:.0} s, {} violations",
            round.summary,
            began.elapsed().as_secs_f64(),
            round.violations.len()
        );
        for violation in round.violations.iter().take(PRINTED_VIOLATIONS) {
            println!("    {violation}");
        }
        if !round.violations.is_empty() {
            failed_seeds.push(seed);
        }
    }
    assert!(
        failed_seeds.is_empty(),
        "rounds with these seeds had violations: {failed_seeds:?}; repeat one with \
            ./dev chaos --seed SEED"
    );
}

/// The result of a round.
struct Round {
    violations: Vec<String>,
    /// The number of messages and of faults.
    summary: String,
    /// The servers, for the next round.
    servers: (Cluster, Database),
}

impl Round {
    fn assert_no_violations(&self) {
        println!("{}", self.summary);
        let violations = &self.violations;
        let printed = &violations[..violations.len().min(PRINTED_VIOLATIONS)];
        assert!(violations.is_empty(), "{} violations: {printed:#?}", violations.len());
    }
}

/// Runs a round: publishes messages for `duration` while `inject` injects faults, waits until the
/// replicas are idle, and checks the result.
async fn run_round(
    seed: u64,
    (rabbitmq, postgres): (Cluster, Database),
    duration: Duration,
    inject: impl AsyncFnOnce(&mut Stage, &mut fastrand::Rng) -> Vec<Fault>,
) -> Round {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut load = Load::new(SIGNUPS, &mut rng);
    let mut stage = Stage::set_up(REPLICAS, rabbitmq, postgres).await;
    if rng.u8(..4) == 0 {
        // Lost consumers soon exceed it.
        load.may_exceed_delivery_limit = true;
        stage.world = stage.world.with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "2");
    }
    stage.start();
    stage.end_faults().await.expect("all replicas are ready before the first fault");
    collect_outcomes(&stage.world).await;
    stage.flush_queue_names();
    for person in &load.refused {
        let refusal = json!({
            "kind": "refuse",
            "identifier": person,
            "field": "attributes.plan",
        });
        stage.world.fault(refusal).await;
    }
    stage.world.fault(json!({ "kind": "latency", "ms": CALL_LATENCY_MS })).await;
    let amqp_url = stage.world.amqp_url.clone();
    let publishing = load.publish(&amqp_url, duration);
    let (faults, ()) = tokio::join!(inject(&mut stage, &mut rng), publishing);
    let mut violations: Vec<_> = stage.end_faults().await.err().into_iter().collect();
    let may_lose_messages = faults.iter().any(Fault::may_lose_job_messages);
    violations.extend(end_idle_replicas(&mut stage, may_lose_messages).await);
    let extra_calls: usize = faults.iter().map(Fault::extra_calls).sum();
    violations.extend(check::find_violations(&stage, &load, extra_calls).await);
    violations.extend(check::find_wrong_profiles(&stage, &load).await);
    if !violations.is_empty() {
        save_evidence(&stage, seed, &faults);
    }
    let summary = format!("{} messages, {} faults", load.len(), faults.len());
    Round { violations, summary, servers: stage.into_servers() }
}

/// Waits until the replicas are idle, and ends them. They start again while they leave late copies,
/// which replicas without faults remove.
async fn end_idle_replicas(stage: &mut Stage, may_lose_messages: bool) -> Vec<String> {
    let mut violations = Vec::new();
    for end in 1..=IDLE_ENDS_MAX {
        violations.extend(check::wait_until_idle(stage, may_lose_messages).await);
        for replica in &mut stage.replicas {
            replica.terminate().await;
        }
        let is_last = end == IDLE_ENDS_MAX || !violations.is_empty();
        if is_last || !check::are_copies_left(stage).await {
            break;
        }
        violations.extend(stage.end_faults().await.err());
    }
    violations
}

/// Saves the logs of the replicas and the list of faults, and prints where the database is.
fn save_evidence(stage: &Stage, seed: u64, faults: &[Fault]) {
    let folder = root().join(format!("target/chaos/{seed}"));
    stage.save_logs(&folder);
    let faults: Vec<_> = faults.iter().map(|fault| format!("{fault:?}")).collect();
    std::fs::write(folder.join("faults"), faults.join("\n")).expect("written");
    println!("the database is {}, the logs are in {}", stage.world.database_url, folder.display());
}

/// Injects random faults, one after the other.
async fn inject_random_faults(stage: &mut Stage, rng: &mut fastrand::Rng) -> Vec<Fault> {
    let began = Instant::now();
    let mut faults = Vec::new();
    while began.elapsed() < ROUND_DURATION {
        let fault = Fault::random(REPLICAS, rng);
        fault.inject(stage).await;
        faults.push(fault);
        tokio::time::sleep(Duration::from_millis(rng.u64(50..600))).await;
    }
    faults
}

/// Kills the leader of every queue, and then partitions nodes that lead queues from the others.
async fn inject_cluster_faults(stage: &mut Stage, _: &mut fastrand::Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    for node in leaders.clone() {
        let fault = Fault::KillRabbitMq { node };
        fault.inject(stage).await;
        faults.push(fault);
        leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    }
    for _ in 0..2 {
        let node = *leaders.first().expect("every queue has a leader");
        let fault = Fault::Isolate { node, extra_time: Duration::from_secs(5) };
        fault.inject(stage).await;
        faults.push(fault);
        leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    }
    faults
}

/// Declares a queue for this round that keeps every outcome.
async fn collect_outcomes(world: &World) {
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel
        .queue_declare(OUTCOME_QUEUE.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .expect("declared");
    let bound = channel.queue_bind(
        OUTCOME_QUEUE.into(),
        "signup.updates".into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
}
