//! The faults of a round, drawn at random from a seed, and how each is done.

use std::time::Duration;

use lapin::options::QueuePurgeOptions;
use serde_json::{Value, json};

use crate::{FAILED, proxy::Mode, stage::Stage, support::SHORT_LADDER};

/// Whose connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wire {
    RabbitMq,
    PostgreSql,
    CustomerIo,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// SIGKILL, and started again after a while.
    Kill {
        replica: usize,
        away: Duration,
    },
    /// SIGTERM, and started again after a while.
    Terminate {
        replica: usize,
        away: Duration,
    },
    /// A replica's connections are cut.
    Cut {
        replica: usize,
        wire: Wire,
    },
    /// A replica's connections misbehave for a while, and are cut then.
    Misbehave {
        replica: usize,
        wire: Wire,
        mode: Mode,
        time: Duration,
    },
    StopRabbitMq,
    KillRabbitMq {
        node: usize,
    },
    /// A node of RabbitMQ and the others lose sight of each other, until they give it up and a
    /// while longer.
    Isolate {
        node: usize,
        longer: Duration,
    },
    /// RabbitMQ blocks publishers for a while, as it does when memory is short.
    MemoryAlarm {
        time: Duration,
    },
    /// Somebody purges a queue.
    Purge {
        queue: String,
    },
    RestartPostgreSql,
    CrashPostgreSql,
    /// An administrator ends every session of the database.
    EndSessions,
    /// Somebody's transaction locks the jobs for a while, until every connection of the pools
    /// waits.
    LockJobs {
        time: Duration,
    },
    /// Customer.io's calls go wrong.
    CustomerIo(Value),
    /// An operator does something.
    Operator {
        replica: usize,
        method: &'static str,
        path: &'static str,
        body: Option<Value>,
    },
}

fn some_time(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(100..1500))
}

impl Fault {
    /// The next fault. Customer.io's are the most frequent, restarts of servers the rarest, since
    /// they take longest.
    pub(crate) fn draw(replicas: usize, rng: &mut fastrand::Rng) -> Self {
        let replica = rng.usize(..replicas);
        let wire =
            *rng.choice(&[Wire::RabbitMq, Wire::PostgreSql, Wire::CustomerIo]).expect("not empty");
        match rng.u8(..100) {
            0..10 => Self::Kill { replica, away: some_time(rng) },
            10..16 => Self::Terminate { replica, away: some_time(rng) },
            16..26 => Self::Cut { replica, wire },
            26..42 => {
                let mode = *rng
                    .choice(&[Mode::Refuse, Mode::Stall, Mode::Mute, Mode::Slow])
                    .expect("not empty");
                Self::Misbehave { replica, wire, mode, time: some_time(rng) }
            }
            42..45 => Self::StopRabbitMq,
            45..48 => Self::KillRabbitMq { node: 0 },
            48..51 => Self::MemoryAlarm { time: some_time(rng) },
            51..57 => Self::Purge { queue: queue(rng) },
            57..60 => Self::RestartPostgreSql,
            60..63 => Self::CrashPostgreSql,
            63..66 => Self::EndSessions,
            66..69 => Self::LockJobs { time: 2 * some_time(rng) },
            69..93 => Self::CustomerIo(customerio(rng)),
            _ => operator(replica, rng),
        }
    }

    /// How many calls of a job may be made because of it that are no attempts: one that was cut off
    /// before it was settled, or those of a call that is refused whole and split.
    pub(crate) fn calls_too_many(&self) -> usize {
        match self {
            Self::Operator { .. } | Self::Purge { .. } => 0,
            Self::CustomerIo(fault) if fault["status"] == 400 => 4,
            Self::CustomerIo(_) => 0,
            _ => 1,
        }
    }

    /// Whether a job may have no message any more after it.
    pub(crate) fn takes_messages_of_jobs(&self) -> bool {
        matches!(self, Self::Purge { queue } if !queue.starts_with(FAILED))
    }

    pub(crate) async fn strike(&self, stage: &mut Stage) {
        match self {
            Self::Kill { replica, away } => {
                stage.replicas[*replica].kill();
                tokio::time::sleep(*away).await;
                stage.replicas[*replica].start(&stage.world);
            }
            Self::Terminate { replica, away } => {
                stage.replicas[*replica].terminate().await;
                tokio::time::sleep(*away).await;
                stage.replicas[*replica].start(&stage.world);
            }
            Self::Cut { replica, wire } => stage.replicas[*replica].proxy(*wire).cut(),
            Self::Misbehave { replica, wire, mode, time } => {
                let proxy = stage.replicas[*replica].proxy(*wire);
                proxy.set(*mode);
                tokio::time::sleep(*time).await;
                proxy.cut();
                proxy.set(Mode::Pass);
            }
            Self::StopRabbitMq => stage.rabbitmq.restart(),
            Self::KillRabbitMq { node } => stage.rabbitmq.kill(*node),
            Self::Isolate { node, longer } => stage.rabbitmq.isolate(*node, *longer).await,
            Self::MemoryAlarm { time } => {
                stage.rabbitmq.set_memory_alarm(true);
                tokio::time::sleep(*time).await;
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
                tokio::task::block_in_place(|| stage.postgres.run("kill", &[]));
                stage.postgres.start_again();
            }
            Self::EndSessions => stage.end_sessions().await,
            Self::LockJobs { time } => stage.lock_jobs(*time).await,
            Self::CustomerIo(fault) => stage.world.fault(fault.clone()).await,
            Self::Operator { replica, method, path, body } => {
                // It may be away, or have nothing to do.
                let _ =
                    stage.replicas[*replica].ask(&stage.world, method, path, body.as_ref()).await;
            }
        }
    }
}

/// A queue of which nothing is lost that the ledger does not know: events that were never taken in
/// can't be brought back.
fn queue(rng: &mut fastrand::Rng) -> String {
    let tiers = SHORT_LADDER.split(',').map(|tier| format!("customerio-sync.retry.{tier}"));
    let others = ["customerio-sync.jobs", FAILED, "customerio-sync.failed.mirror"];
    let queues: Vec<_> = tiers.chain(others.map(str::to_owned)).collect();
    rng.choice(&queues).expect("not empty").clone()
}

fn customerio(rng: &mut fastrand::Rng) -> Value {
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

fn operator(replica: usize, rng: &mut fastrand::Rng) -> Fault {
    let all = json!({ "errorType": *rng.choice(&["network", "server_error", "rate_limit",
    "other"]).expect("not empty") });
    let (method, path, body) = match rng.u8(..6) {
        0..3 => ("POST", "/sync-failures/retry", Some(all)),
        3 => (
            "POST",
            "/sync-failures/dismiss",
            Some(json!({ "errorType": "rate_limit", "reason": "chaos" })),
        ),
        4 => ("POST", "/process?limit=20", None),
        _ => ("POST", "/cleanup", None),
    };
    Fault::Operator { replica, method, path, body }
}
