//! The faults of a round, drawn at random from a seed, and how each is injected.

use std::time::Duration;

use lapin::options::QueuePurgeOptions;
use serde_json::{Value, json};
use test_servers::Server;
use tokio::task::block_in_place;

use crate::{FAILURE_QUEUE, proxy::Mode, stage::Stage, support::SHORT_LADDER};

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
    /// PostgreSQL stops cleanly and starts again.
    RestartPostgreSql,
    /// PostgreSQL is killed and started again.
    CrashPostgreSql,
    /// An administrator ends every session of the database.
    EndSessions,
    /// Another transaction locks the jobs for a while, until all connections of the pools wait.
    LockJobs { duration: Duration },
    /// Calls to Customer.io fail or are slow.
    CustomerIo(Value),
    /// An operator uses the admin API.
    Operator { replica: usize, method: &'static str, path: &'static str, body: Option<Value> },
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
        match rng.u8(..100) {
            0..10 => Self::Kill { replica, downtime: random_duration(rng) },
            10..16 => Self::Terminate { replica, downtime: random_duration(rng) },
            16..26 => Self::Cut { replica, peer },
            26..42 => {
                let mode = *rng
                    .choice(&[Mode::Refuse, Mode::Stall, Mode::Mute, Mode::Slow])
                    .expect("not empty");
                Self::Misbehave { replica, peer, mode, duration: random_duration(rng) }
            }
            42..45 => Self::RestartRabbitMq,
            45..48 => Self::KillRabbitMq { node: 0 },
            48..51 => Self::MemoryAlarm { duration: random_duration(rng) },
            51..57 => Self::Purge { queue: random_queue(rng) },
            57..60 => Self::RestartPostgreSql,
            60..63 => Self::CrashPostgreSql,
            63..66 => Self::EndSessions,
            66..69 => Self::LockJobs { duration: 2 * random_duration(rng) },
            69..93 => Self::CustomerIo(random_customerio_fault(rng)),
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
        matches!(self, Self::Purge { queue } if !queue.starts_with(FAILURE_QUEUE))
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
            Self::RestartRabbitMq => stage.rabbitmq.restart(),
            Self::KillRabbitMq { node } => stage.rabbitmq.kill(*node),
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
            Self::RestartPostgreSql => stage.postgres.restart(),
            Self::CrashPostgreSql => {
                block_in_place(|| stage.postgres.kill()).expect("the server is running");
                stage.postgres.start();
            }
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

/// Draws a queue whose contents the ledger knows. An event that is purged before its intake cannot
/// be recovered.
fn random_queue(rng: &mut fastrand::Rng) -> String {
    let tiers = SHORT_LADDER.split(',').map(|tier| format!("customerio-sync.retry.{tier}"));
    let others = ["customerio-sync.jobs", FAILURE_QUEUE, "customerio-sync.failed.mirror"];
    let queues: Vec<_> = tiers.chain(others.map(str::to_owned)).collect();
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
