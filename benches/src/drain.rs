//! Closed loop: events wait in their queue, and replicas drain it.

use std::path::Path;

use serde_json::json;

use crate::{
    arguments::Arguments,
    report::Report,
    servers::{CpuTimes, Servers, peak_memory},
    stage::{Program, Stage},
};

/// The conditions of a run.
struct Scenario {
    name: &'static str,
    /// Duration of a call, in milliseconds.
    latency: u64,
    /// Share of the calls that fail.
    errors: f64,
    replicas: usize,
}

const SCENARIOS: [Scenario; 7] = [
    Scenario { name: "calls of 0 ms", latency: 0, errors: 0.0, replicas: 1 },
    Scenario { name: "calls of 100 ms", latency: 100, errors: 0.0, replicas: 1 },
    Scenario { name: "calls of 250 ms", latency: 250, errors: 0.0, replicas: 1 },
    Scenario { name: "1 % of calls fail", latency: 0, errors: 0.01, replicas: 1 },
    Scenario { name: "10 % of calls fail", latency: 0, errors: 0.1, replicas: 1 },
    Scenario { name: "three replicas, 0 ms", latency: 0, errors: 0.0, replicas: 3 },
    Scenario { name: "three replicas, 250 ms", latency: 250, errors: 0.0, replicas: 3 },
];

/// Slow calls need more events until the batches in flight have grown.
const EVENTS_FACTOR_WITH_LATENCY: usize = 3;

/// What a run cost.
struct Cost {
    cpu: CpuTimes,
    service_cpu: f64,
    simulator_cpu: f64,
    memory: f64,
    wal: f64,
    commits: f64,
    /// Bytes to and from RabbitMQ, PostgreSQL and the simulator.
    wire: [f64; 3],
}

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    let is_chosen = |scenario: &&Scenario| {
        arguments.only.as_ref().is_none_or(|only| scenario.name.starts_with(only))
    };
    for scenario in SCENARIOS.iter().filter(is_chosen) {
        for round in 0..arguments.rounds {
            for (name, program) in arguments.programs(round) {
                let stage = Stage::new(servers, program, &arguments.program).await;
                run(servers, stage, program, name, scenario, arguments.events, report).await;
            }
        }
    }
}

async fn run(
    servers: &Servers,
    stage: Stage<'_>,
    program: &Path,
    name: &str,
    scenario: &Scenario,
    events: usize,
    report: &mut Report,
) {
    let factor = if scenario.latency > 0 { EVENTS_FACTOR_WITH_LATENCY } else { 1 };
    let events = events * factor;
    stage.publish(program, events);
    if scenario.latency > 0 {
        stage.add_fault(json!({ "kind": "latency", "ms": scenario.latency })).await;
    }
    if scenario.errors > 0.0 {
        let fault = json!({ "kind": "status", "status": 503, "share": scenario.errors });
        stage.add_fault(fault).await;
    }
    let start = || (0..scenario.replicas).map(|_| stage.serve(program).0).collect();
    let what = format!("drain, {}", scenario.name);
    let awaited = awaited(events, scenario.errors);
    report_drain(servers, &stage, (&what, name), awaited, start, report).await;
    stage.remove().await;
}

/// The jobs that are completed when a drain ends. Jobs that fail twice wait on tiers of 25 s and
/// more, and the drain ends before they do.
fn awaited(events: usize, errors: f64) -> usize {
    let left = if errors > 0.0 { 5.0 + 2.0 * errors * errors * events as f64 } else { 0.0 };
    events - left.ceil() as usize
}

/// Drains as [`drain`] does, and reports the rate and the cost.
pub(crate) async fn report_drain(
    servers: &Servers,
    stage: &Stage<'_>,
    (what, name): (&str, &str),
    awaited: usize,
    start: impl FnOnce() -> Vec<Program>,
    report: &mut Report,
) {
    let (rate, cost) = drain(servers, stage, awaited, start).await;
    report.add(what, name, "jobs/s", rate);
    cost.report(what, name, awaited, report);
}

/// Starts the consumers, waits until `awaited` jobs are completed, and returns the jobs per second
/// and the cost.
///
/// The rate is that of the first nine tenths of the jobs: from the creation of the first one to the
/// completion of the last of them. The rest may wait on a delay tier.
async fn drain(
    servers: &Servers,
    stage: &Stage<'_>,
    awaited: usize,
    start: impl FnOnce() -> Vec<Program>,
) -> (f64, Cost) {
    stage.execute("CHECKPOINT").await;
    let began = stage.now().await;
    let (wal, commits) = (wal(stage).await, stage.commits().await);
    let (cpu, simulator_cpu) = (servers.cpu_times(), stage.simulator_cpu());
    let programs = start();
    stage.wait_until_completed(awaited, began).await;
    let after = servers.cpu_times();
    let cost = Cost {
        cpu: CpuTimes {
            postgres: after.postgres - cpu.postgres,
            rabbitmq: after.rabbitmq - cpu.rabbitmq,
        },
        service_cpu: programs.iter().map(|program| servers.cpu_of_group(program.0.id())).sum(),
        simulator_cpu: stage.simulator_cpu() - simulator_cpu,
        wire: stage.bytes_on_wire(),
        memory: programs.iter().map(|program| peak_memory(program.0.id())).fold(0.0, f64::max),
        wal: self::wal(stage).await - wal,
        commits: stage.commits().await - commits,
    };
    drop(programs);
    let rate = format!(
        "SELECT 0.9 * count(*) / extract(
            epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY completed_at) - min(created_at)
        )
        FROM signup_customerio_sync_jobs
        WHERE created_at >= to_timestamp({began})"
    );
    (stage.number(&rate).await, cost)
}

async fn wal(stage: &Stage<'_>) -> f64 {
    stage.number("pg_current_wal_insert_lsn() - '0/0'::pg_lsn").await
}

impl Cost {
    fn report(&self, what: &str, name: &str, events: usize, report: &mut Report) {
        let micros = |seconds: f64| seconds * 1e6 / events as f64;
        for (resource, unit, value) in [
            ("CPU of the service", "us/job", micros(self.service_cpu)),
            ("CPU of PostgreSQL", "us/job", micros(self.cpu.postgres)),
            ("CPU of RabbitMQ", "us/job", micros(self.cpu.rabbitmq)),
            ("CPU of the simulator", "us/job", micros(self.simulator_cpu)),
            ("WAL", "bytes/job", self.wal / events as f64),
            ("commits", "per job", self.commits / events as f64),
            ("bytes to and from RabbitMQ", "bytes/job", self.wire[0] / events as f64),
            ("bytes to and from PostgreSQL", "bytes/job", self.wire[1] / events as f64),
            ("bytes to and from Customer.io", "bytes/job", self.wire[2] / events as f64),
            ("peak memory of a process", "MiB", self.memory),
        ] {
            report.add(&format!("{what}: {resource}"), name, unit, value);
        }
    }
}
