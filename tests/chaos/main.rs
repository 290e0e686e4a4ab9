//! Chaos: several replicas of the real program work on real servers while everything goes wrong
//! that can, and when the faults have stopped, nothing is lost and nothing doubled.
//!
//! The seed decides which faults strike in which order; how they meet the work is up to the
//! machine. `./dev chaos` runs rounds with new seeds, or with one that is given.

mod check;
mod cluster;
mod fault;
mod load;
mod proxy;
mod stage;
#[path = "../suite/support.rs"]
#[expect(dead_code, reason = "the suite uses more of it")]
mod support;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};

use cluster::Cluster;
use fault::Fault;
use load::Load;
use stage::Stage;
use support::{OwnServer, World, root};

const REPLICAS: usize = 3;
const SIGNUPS: usize = 300;
/// How long faults strike in a round.
const FAULTS: Duration = Duration::from_secs(15);
/// How long a call takes while faults strike, in milliseconds: so long that they find jobs in hand.
const CALL_MS: u64 = 200;
/// How long messages come while the nodes of a cluster fail.
const CLUSTER_FAULTS: Duration = Duration::from_secs(60);
/// The failure queue.
const FAILED: &str = "customerio-sync.failed";
/// Where outcomes are collected.
const OUTCOMES: &str = "chaos.outcomes";

#[tokio::test(flavor = "multi_thread")]
async fn three_rounds_of_faults_lose_nothing_and_double_nothing() {
    rounds(&[1, 2, 3]).await;
}

/// Three nodes: the leader of every queue is killed, and nodes lose sight of each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_every_leader_and_is_split_loses_nothing_and_doubles_nothing() {
    let servers = (Cluster::start(3).await, OwnServer::start("postgres"));
    let (found, told, _) = round(1, servers, CLUSTER_FAULTS, strike_cluster).await;
    println!("{told}");
    assert!(found.is_empty(), "{} violations: {:#?}", found.len(), &found[..found.len().min(20)]);
}

/// `./dev chaos`: as many rounds as CHAOS_ROUNDS says, from the seed CHAOS_SEED on.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as one likes; run by `./dev chaos`"]
async fn as_many_rounds_as_are_asked_for() {
    let number = |variable: &str, default| {
        let text = std::env::var(variable).ok().filter(|text| !text.is_empty());
        text.map_or(default, |text| {
            text.parse().unwrap_or_else(|_| panic!("{variable}: expected a number"))
        })
    };
    let seed = number("CHAOS_SEED", fastrand::u64(..1 << 32));
    let seeds: Vec<_> = (0..number("CHAOS_ROUNDS", 1)).map(|round| seed + round).collect();
    rounds(&seeds).await;
}

/// A round a seed, on the same servers. Tells all that does not hold in any of them.
async fn rounds(seeds: &[u64]) {
    let mut servers = (Cluster::start(1).await, OwnServer::start("postgres"));
    let mut broken = Vec::new();
    for &seed in seeds {
        let began = Instant::now();
        let (found, told, kept) = round(seed, servers, FAULTS, strike).await;
        servers = kept;
        println!(
            "seed {seed}: {told}, {:.0} s, {} violations",
            began.elapsed().as_secs_f64(),
            found.len()
        );
        for violation in found.iter().take(20) {
            println!("    {violation}");
        }
        if !found.is_empty() {
            broken.push(seed);
        }
    }
    assert!(
        broken.is_empty(),
        "these seeds broke something: {broken:?}; run one again with ./dev chaos --seed SEED"
    );
}

/// Lets `strike` do its worst while messages come for `time`; what does not hold then, a line about
/// the round, and the servers for the next.
async fn round(
    seed: u64,
    (rabbitmq, postgres): (Cluster, OwnServer),
    time: Duration,
    strike: impl AsyncFnOnce(&mut Stage, &mut fastrand::Rng) -> Vec<Fault>,
) -> (Vec<String>, String, (Cluster, OwnServer)) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let load = Load::new(SIGNUPS, &mut rng);
    let mut stage = Stage::set(REPLICAS, rabbitmq, postgres).await;
    stage.calm().await.expect("nothing has been broken yet");
    collect_outcomes(&stage.world).await;
    stage.let_rabbitmq_write_down_its_queues();
    for person in &load.refused {
        let refusal = serde_json::json!({ "kind": "refuse", "identifier": person,
        "field": "attributes.plan" });
        stage.world.fault(refusal).await;
    }
    stage.world.fault(serde_json::json!({ "kind": "latency", "ms": CALL_MS })).await;
    let amqp_url = stage.world.amqp_url.clone();
    let publishing = load.publish(&amqp_url, time);
    let (faults, ()) = tokio::join!(strike(&mut stage, &mut rng), publishing);
    let mut found: Vec<_> = stage.calm().await.err().into_iter().collect();
    found.extend(
        check::wait_for_rest(&stage, faults.iter().any(Fault::takes_messages_of_jobs)).await,
    );
    for replica in &mut stage.replicas {
        replica.terminate().await;
    }
    let interruptions: usize = faults.iter().map(Fault::calls_too_many).sum();
    found.extend(check::violations(&stage, &load, interruptions).await);
    let told = format!("{} messages, {} faults", load.len(), faults.len());
    if !found.is_empty() {
        let folder: PathBuf = root().join(format!("target/chaos/{seed}"));
        stage.keep_logs(&folder);
        let plan: Vec<_> = faults.iter().map(|fault| format!("{fault:?}")).collect();
        std::fs::write(folder.join("faults"), plan.join("\n")).expect("written");
        println!(
            "the database is {}, the logs are in {}",
            stage.world.database_url,
            folder.display()
        );
    }
    (found, told, stage.into_servers())
}

/// Lets faults strike one after the other.
async fn strike(stage: &mut Stage, rng: &mut fastrand::Rng) -> Vec<Fault> {
    let began = Instant::now();
    let mut faults = Vec::new();
    while began.elapsed() < FAULTS {
        let fault = Fault::draw(REPLICAS, rng);
        fault.strike(stage).await;
        faults.push(fault);
        tokio::time::sleep(Duration::from_millis(rng.u64(50..600))).await;
    }
    faults
}

/// Kills the leader of every queue, and lets nodes that lead queues lose sight of the others.
async fn strike_cluster(stage: &mut Stage, _: &mut fastrand::Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    let to_be_killed = leaders.clone();
    for node in to_be_killed {
        faults.push(Fault::KillRabbitMq { node });
        faults[faults.len() - 1].strike(stage).await;
        leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    }
    for _ in 0..2 {
        let node = *leaders.first().expect("every queue has a leader");
        faults.push(Fault::Isolate { node, longer: Duration::from_secs(5) });
        faults[faults.len() - 1].strike(stage).await;
        leaders = stage.rabbitmq.wait_until_whole(&stage.world).await;
    }
    faults
}

/// A queue of the round's own, in which every outcome is kept.
async fn collect_outcomes(world: &World) {
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel
        .queue_declare(OUTCOMES.into(), QueueDeclareOptions::durable(), arguments)
        .await
        .expect("declared");
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(
        OUTCOMES.into(),
        "signup.updates".into(),
        "#".into(),
        options,
        FieldTable::default(),
    );
    bound.await.expect("bound");
}
