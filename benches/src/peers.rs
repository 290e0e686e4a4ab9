//! Other programs that do the same work: as most people would write them, and as an expert would.
//!
//! Each states at its top what it does not guarantee. All of them and the service get the same
//! events: one per signup.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    arguments::Arguments,
    drain::report_drain,
    report::Report,
    servers::{Servers, output},
    stage::{Program, Stage, spawn},
};

/// A peer: how its queue is filled, and how it starts, both in its folder.
struct Peer {
    name: &'static str,
    folder: &'static str,
    /// Fills its own queue; or else the events are in the queue of the service.
    fill: Option<&'static str>,
    start: &'static str,
    /// Maximum events of a run, so that a slow peer ends in a minute.
    events_max: usize,
}

/// The settings are the best that were found by trying.
const PEERS: [Peer; 4] = [
    Peer {
        name: "Node.js, a message at a time",
        folder: "node",
        fill: None,
        start: "exec node naive.js",
        events_max: 10_000,
    },
    Peer {
        name: "Node.js, batches",
        folder: "node",
        fill: None,
        start: "exec node batches.js",
        events_max: usize::MAX,
    },
    Peer {
        name: "Celery",
        folder: "python",
        fill: Some("python celery_worker.py fill"),
        start: "exec celery -A celery_worker worker --pool threads --concurrency 8 \
            --loglevel ERROR",
        events_max: 10_000,
    },
    Peer {
        name: "Dramatiq",
        folder: "python",
        fill: Some("python dramatiq_worker.py fill"),
        start: "dramatiq_queue_prefetch=64 exec dramatiq dramatiq_worker --processes 2 --threads 4",
        events_max: 10_000,
    },
];

const WHAT: &str = "drain, one event per signup";

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    for _ in 0..arguments.rounds {
        let stage = Stage::new(servers, &arguments.program, &arguments.program).await;
        publish_samples(&stage, arguments, arguments.events);
        let start = || vec![stage.serve(&arguments.program).0];
        report_drain(servers, &stage, (WHAT, "this"), arguments.events, start, report).await;
        stage.remove().await;
        for peer in &PEERS {
            run(servers, peer, arguments, report).await;
        }
    }
}

async fn run(servers: &Servers, peer: &Peer, arguments: &Arguments, report: &mut Report) {
    let stage = Stage::new(servers, &arguments.program, &arguments.program).await;
    let events = arguments.events.min(peer.events_max);
    let folder = arguments.peers.join(peer.folder);
    match peer.fill {
        Some(fill) => {
            output(&mut shell(&stage, &folder, &format!("{fill} {events}")));
        }
        None => publish_samples(&stage, arguments, events),
    }
    let start = || vec![start(&stage, &folder, peer.start)];
    report_drain(servers, &stage, (WHAT, peer.name), events, start, report).await;
    stage.remove().await;
}

/// Publishes one event per signup.
fn publish_samples(stage: &Stage<'_>, arguments: &Arguments, events: usize) {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let written =
        shell(stage, &arguments.peers.join("python"), &format!("python sample.py {events}"))
            .stdout(Stdio::from(File::create(file.path()).expect("a file")))
            .status();
    assert!(written.expect("Python starts").success(), "the samples are written");
    output(stage.command(&arguments.program, "publish").arg(file.path()));
}

fn start(stage: &Stage<'_>, folder: &Path, command: &str) -> Program {
    spawn(&mut shell(stage, folder, command))
}

/// A command line of a peer.
fn shell(stage: &Stage<'_>, folder: &Path, line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder);
    stage.set_environment(&mut command);
    command
}
