//! Peak memory of a replica that drains events with bodies of one size, or large ones after small
//! ones.

use std::{fs::File, io::Write, path::Path};

use serde_json::json;
use uuid::Uuid;

use crate::{
    arguments::Arguments,
    report::Report,
    servers::{Servers, output, peak_memory},
    stage::Stage,
};

/// Events of which the bodies have one size.
struct Bodies {
    events: usize,
    /// Length of the filler of a body, in bytes.
    length: usize,
}

const SMALL: Bodies = Bodies { events: 20_000, length: 1_000 };
/// More than a replica prefetches.
const LARGE: Bodies = Bodies { events: 1_000, length: 200_000 };

/// The backlogs: their events wait one after the other in their queue.
const BACKLOGS: [(&str, &[Bodies]); 4] = [
    ("bodies of 1 KB", &[SMALL]),
    ("bodies of 20 KB", &[Bodies { events: 5_000, length: 20_000 }]),
    ("bodies of 200 KB", &[LARGE]),
    ("1 KB, then 200 KB", &[SMALL, LARGE]),
];

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    for (name, backlog) in BACKLOGS {
        for round in 0..arguments.rounds {
            for (version, program) in arguments.programs(round) {
                let stage = Stage::new(servers, program, &arguments.program).await;
                let memory = drain(&stage, program, backlog).await;
                let what = format!("peak memory, {name}");
                report.add(&what, version, "MiB", memory);
                stage.remove().await;
            }
        }
    }
}

async fn drain(stage: &Stage<'_>, program: &Path, backlog: &[Bodies]) -> f64 {
    for bodies in backlog {
        publish(stage, program, bodies);
    }
    let began = stage.now().await;
    let (replica, _) = stage.serve(program);
    let events = backlog.iter().map(|bodies| bodies.events).sum();
    stage.wait_until_completed(events, began).await;
    peak_memory(replica.0.id())
}

/// Publishes events, each of a signup of its own. Their length is that of a field which the service
/// ignores, since Customer.io accepts no attribute of that length.
fn publish(stage: &Stage<'_>, program: &Path, bodies: &Bodies) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("events.jsonl");
    let mut file = File::create(&path).expect("a file");
    let filler = "x".repeat(bodies.length);
    for _ in 0..bodies.events {
        let signup = Uuid::new_v4();
        let event = json!({
            "event_id": Uuid::new_v4(),
            "signup_id": signup,
            "operator_id": "op-12",
            "customer": { "email": format!("{}@example.com", signup.simple()) },
            "filler": filler,
        });
        writeln!(file, "{event}").expect("written");
    }
    drop(file);
    output(stage.command(program, "publish").arg(path));
}
