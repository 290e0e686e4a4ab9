//! The faults of a round, drawn at random from a seed, and how each is injected.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::{
    options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};

use crate::{
    FAILURE_QUEUE,
    proxy::Mode,
    stage::Stage,
    support::{SHORT_LADDER, World},
};

/// The queue of a subscriber that refuses every outcome.
const FULL_QUEUE: &str = "chaos.full";

/// The server at the other end of a replica's connections.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    RabbitMq,
    PostgreSql,
    CustomerIo,
}

/// A fault with its parameters.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A replica is killed with SIGKILL, and is started again later.
    Kill { replica: usize, downtime: Duration },
    /// A replica is stopped with SIGTERM, and is started again later.
    Terminate { replica: usize, downtime: Duration },
    /// A replica's connections to a peer are cut.
    Cut { replica: usize, peer: Peer },
    /// A replica's connections to a peer misbehave for a while, and are then cut.
    Misbehave { replica: usize, peer: Peer, mode: Mode, duration: Duration },
    /// A replica's present connections to a peer are no longer forwarded and stay open.
    Silence { replica: usize, peer: Peer },
    /// No replica reaches a peer, while operators ask for the jobs to be processed. If the peer is
    /// PostgreSQL, the work in flight is two hours old afterwards.
    Outage { peer: Peer, mode: Mode, duration: Duration },
    /// All nodes of RabbitMQ stop cleanly and start again.
    RestartRabbitMq,
    /// A node of RabbitMQ is killed and started again.
    KillRabbitMq { node: usize },
    /// A node of RabbitMQ is partitioned from the others until they consider it down, and for
    /// `extra_time` longer.
    Isolate { node: usize, extra_time: Duration },
    /// RabbitMQ blocks publishers for a while, as it does when memory is short.
    MemoryAlarm { duration: Duration },
    /// Somebody purges a queue.
    Purge { queue: String },
    /// Somebody deletes a queue, an exchange or a binding.
    Delete(Part),
    /// A subscriber refuses every outcome for a while.
    RefuseOutcomes { duration: Duration },
    /// PostgreSQL stops cleanly and starts again. Clients reach its standby meanwhile.
    RestartPostgreSql,
    /// PostgreSQL is killed and started again. Clients reach its standby meanwhile.
    CrashPostgreSql,
    /// PostgreSQL is killed, and its standby is promoted after a while.
    FailOver { downtime: Duration },
    /// For a while, all sessions of the database are read-only.
    ReadOnly { duration: Duration },
    /// An administrator ends every session of the database.
    EndSessions,
    /// Another transaction locks the jobs for a while, until all connections of the pools wait.
    LockJobs { duration: Duration },
    /// Calls to Customer.io fail or are slow.
    CustomerIo(Value),
    /// An operator uses the admin API.
    Operator { replica: usize, method: &'static str, path: &'static str, body: Option<Value> },
}

/// A part of the topology.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Queue(String),
    Exchange(&'static str),
    /// The binding of the queue of submitted signups.
    EventBinding,
}

fn random_duration(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(100..1500))
}

impl Fault {
    /// Draws a fault. Those of Customer.io are the most frequent; restarts of servers are the
    /// rarest, because they take longest.
    pub(crate) fn random(replicas: usize, rng: &mut fastrand::Rng) -> Self {
        let replica = rng.usize(..replicas);
        let peer =
            *rng.choice(&[Peer::RabbitMq, Peer::PostgreSql, Peer::CustomerIo]).expect("not empty");
        let duration = random_duration(rng);
        match rng.u8(..100) {
            0..8 => Self::Kill { replica, downtime: duration },
            8..13 => Self::Terminate { replica, downtime: duration },
            13..20 => Self::Cut { replica, peer },
            20..33 => {
                let mode = *rng
                    .choice(&[Mode::Refuse, Mode::Stall, Mode::Mute, Mode::Slow])
                    .expect("not empty");
                Self::Misbehave { replica, peer, mode, duration }
            }
            33..37 => Self::Silence { replica, peer },
            37..40 => {
                let mode = *rng.choice(&[Mode::Refuse, Mode::Stall]).expect("not empty");
                Self::Outage { peer, mode, duration: 4 * duration }
            }
            40..42 => Self::RestartRabbitMq,
            42..45 => Self::KillRabbitMq { node: 0 },
            45..48 => Self::MemoryAlarm { duration },
            48..53 => Self::Purge { queue: random_queue(rng) },
            53..57 => Self::Delete(random_part(rng)),
            57..59 => Self::RefuseOutcomes { duration: 2 * duration },
            59..61 => Self::RestartPostgreSql,
            61..64 => Self::CrashPostgreSql,
            64..67 => Self::FailOver { downtime: duration },
            67..69 => Self::ReadOnly { duration },
            69..71 => Self::EndSessions,
            71..74 => Self::LockJobs { duration: 2 * duration },
            74..94 => Self::CustomerIo(random_customerio_fault(rng)),
            _ => random_operator_action(replica, rng),
        }
    }

    /// Maximum number of calls for one job that this fault may cause beyond the attempts of the
    /// job: a call that was cut off before it was settled, or the calls of a batch that Customer.io
    /// refuses as a whole and the service splits.
    pub(crate) fn extra_calls(&self) -> usize {
        match self {
            Self::Operator { .. } | Self::Purge { .. } => 0,
            Self::CustomerIo(fault) if fault["status"] == 400 => 4,
            Self::CustomerIo(_) => 0,
            _ => 1,
        }
    }

    /// Whether a job may be left without a message by this fault.
    pub(crate) fn may_lose_job_messages(&self) -> bool {
        match self {
            Self::Purge { queue } | Self::Delete(Part::Queue(queue)) => {
                !queue.starts_with(FAILURE_QUEUE)
            }
            Self::Delete(Part::Exchange(_)) => true,
            _ => false,
        }
    }

    pub(crate) async fn inject(&self, stage: &mut Stage) {
        match self {
            Self::Kill { replica, downtime } => {
                stage.replicas[*replica].kill();
                tokio::time::sleep(*downtime).await;
                stage.replicas[*replica].start(&stage.world);
            }
            Self::Terminate { replica, downtime } => {
                stage.replicas[*replica].terminate().await;
                tokio::time::sleep(*downtime).await;
                stage.replicas[*replica].start(&stage.world);
            }
            Self::Cut { replica, peer } => stage.replicas[*replica].proxy(*peer).cut(),
            Self::Misbehave { replica, peer, mode, duration } => {
                let proxy = stage.replicas[*replica].proxy(*peer);
                proxy.set(*mode);
                tokio::time::sleep(*duration).await;
                proxy.cut();
                proxy.set(Mode::Forward);
            }
            Self::Silence { replica, peer } => stage.replicas[*replica].proxy(*peer).silence(),
            Self::Outage { peer, mode, duration } => {
                suffer_outage(stage, *peer, *mode, *duration).await;
            }
            Self::RestartRabbitMq => stage.rabbitmq.restart(),
            Self::KillRabbitMq { node } => {
                // Queues may have been declared again.
                stage.flush_queue_names();
                stage.rabbitmq.kill(*node);
            }
            Self::Isolate { node, extra_time } => stage.rabbitmq.isolate(*node, *extra_time).await,
            Self::MemoryAlarm { duration } => {
                stage.rabbitmq.set_memory_alarm(true);
                tokio::time::sleep(*duration).await;
                stage.rabbitmq.set_memory_alarm(false);
            }
            Self::Purge { queue } => {
                let channel = stage.world.channel().await;
                channel
                    .queue_purge(queue.clone().into(), QueuePurgeOptions::default())
                    .await
                    .expect("purged");
            }
            Self::Delete(part) => part.delete(&stage.world).await,
            Self::RefuseOutcomes { duration } => refuse_outcomes(&stage.world, *duration).await,
            Self::RestartPostgreSql => stage.postgres.restart(),
            Self::CrashPostgreSql => stage.postgres.crash(),
            Self::FailOver { downtime } => stage.fail_over(*downtime).await,
            Self::ReadOnly { duration } => stage.make_read_only(*duration).await,
            Self::EndSessions => stage.end_sessions().await,
            Self::LockJobs { duration } => stage.lock_jobs(*duration).await,
            Self::CustomerIo(fault) => stage.world.fault(fault.clone()).await,
            Self::Operator { replica, method, path, body } => {
                // The replica may be down or refuse the action.
                let replica = &stage.replicas[*replica];
                let _ = replica.request(&stage.world, method, path, body.as_ref()).await;
            }
        }
    }
}

impl Part {
    async fn delete(&self, world: &World) {
        let vhost = &world.vhost;
        let path = match self {
            Self::Queue(queue) => format!("queues/{vhost}/{queue}"),
            Self::Exchange(exchange) => format!("exchanges/{vhost}/{exchange}"),
            Self::EventBinding => {
                let queue = "customerio-sync.signup-submitted";
                format!("bindings/{vhost}/e/signup.events/q/{queue}/signup.submitted")
            }
        };
        // It may be missing already.
        let _ = world.http().delete(format!("{}/api/{path}", world.management_url)).send().await;
    }
}

/// No replica reaches a peer for a while.
async fn suffer_outage(stage: &Stage, peer: Peer, mode: Mode, duration: Duration) {
    for replica in &stage.replicas {
        replica.proxy(peer).set(mode);
    }
    tokio::time::sleep(duration / 2).await;
    // They may fail or time out.
    let requests = stage
        .replicas
        .iter()
        .map(|replica| replica.request(&stage.world, "POST", "/process?limit=20", None));
    tokio::join!(tokio::time::sleep(duration / 2), join_all(requests));
    if let Peer::PostgreSql = peer {
        stage.age_work().await;
    }
    for replica in &stage.replicas {
        replica.proxy(peer).cut();
        replica.proxy(peer).set(Mode::Forward);
    }
}

/// Binds a queue that is always full and refuses what is published to it
/// (<https://www.rabbitmq.com/docs/maxlength>).
async fn refuse_outcomes(world: &World, duration: Duration) {
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(0));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let declared =
        channel.queue_declare(FULL_QUEUE.into(), QueueDeclareOptions::default(), arguments);
    declared.await.expect("declared");
    let bound = channel.queue_bind(
        FULL_QUEUE.into(),
        "signup.updates".into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
    tokio::time::sleep(duration).await;
    let deleted = channel.queue_delete(FULL_QUEUE.into(), QueueDeleteOptions::default());
    deleted.await.expect("deleted");
}

/// Draws a part whose loss can be repaired: not a queue of events, since events that nobody has
/// read are known to nobody else, nor the exchange that subscribers have bound their queues to.
fn random_part(rng: &mut fastrand::Rng) -> Part {
    match rng.u8(..4) {
        0 => Part::EventBinding,
        1 => {
            let exchanges = ["signup.events", "customerio-sync.jobs", "customerio-sync.failed"];
            Part::Exchange(rng.choice(&exchanges).expect("not empty"))
        }
        _ => Part::Queue(random_tier_or(&["customerio-sync.jobs", FAILURE_QUEUE], rng)),
    }
}

/// Draws a queue whose contents the ledger knows. An event that is purged before its intake cannot
/// be recovered.
fn random_queue(rng: &mut fastrand::Rng) -> String {
    random_tier_or(&["customerio-sync.jobs", FAILURE_QUEUE, "customerio-sync.failed.mirror"], rng)
}

/// Draws the queue of a tier, or one of `others`.
fn random_tier_or(others: &[&str], rng: &mut fastrand::Rng) -> String {
    let tiers = SHORT_LADDER.split(',').map(|tier| format!("customerio-sync.retry.{tier}"));
    let queues: Vec<_> = tiers.chain(others.iter().map(|&queue| queue.to_owned())).collect();
    rng.choice(&queues).expect("not empty").clone()
}

fn random_customerio_fault(rng: &mut fastrand::Rng) -> Value {
    let calls = rng.u64(1..12);
    let taken = rng.bool();
    match rng.u8(..100) {
        0..20 => json!({ "kind": "status", "status": 500, "calls": calls, "taken": taken }),
        20..30 => json!({ "kind": "status", "status": 503, "calls": 4 * calls }),
        30..40 => json!({ "kind": "status", "status": 429, "calls": calls }),
        40..48 => json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "1" }),
        48..52 => json!({ "kind": "status", "status": 401, "calls": 2 }),
        52..70 => json!({ "kind": "reset", "calls": calls, "taken": taken }),
        70..78 => json!({ "kind": "endless", "calls": 2, "taken": taken }),
        78..88 => json!({ "kind": "truncated", "calls": calls, "taken": taken }),
        88..94 => json!({ "kind": "status", "status": 400, "calls": 1 }),
        _ => json!({ "kind": "latency", "ms": rng.u64(1..150) }),
    }
}

fn random_operator_action(replica: usize, rng: &mut fastrand::Rng) -> Fault {
    let error_types = ["network", "server_error", "rate_limit", "other"];
    let selection = json!({ "errorType": *rng.choice(&error_types).expect("not empty") });
    let dismissal = json!({ "errorType": "rate_limit", "reason": "chaos" });
    let (method, path, body) = match rng.u8(..6) {
        0..3 => ("POST", "/sync-failures/retry", Some(selection)),
        3 => ("POST", "/sync-failures/dismiss", Some(dismissal)),
        4 => ("POST", "/process?limit=20", None),
        _ => ("POST", "/cleanup", None),
    };
    Fault::Operator { replica, method, path, body }
}
