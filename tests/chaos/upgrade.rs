//! Upgrade and rollback under load: replicas of this release and of the one before share a database
//! and a broker, in every order. Nothing is lost and nothing is duplicated.

use std::{path::Path, time::Duration};

use serde_json::json;
use test_servers::previous_program;

use crate::{
    CALL_LATENCY_MS, PRINTED_VIOLATIONS, check,
    cluster::Cluster,
    collect_outcomes,
    database::{Database, Replication},
    load::Load,
    stage::Stage,
    support::wait_for,
};

/// Seed of the load.
const SEED: u64 = 1;
const SIGNUPS: usize = 400;
/// Time during which messages are published. The replicas change their release meanwhile.
const LOAD_DURATION: Duration = Duration::from_secs(40);
/// Time that each combination of releases works.
const STEP_DURATION: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Previous,
    Current,
}

/// A restart of a replica with the program of a release.
#[derive(Debug, Clone, Copy)]
struct Step {
    replica: usize,
    release: Release,
}

/// Both releases side by side, each restarted beside the other; then the upgrade, the rollback, and
/// the upgrade again.
const STEPS: [Step; 9] = [
    Step { replica: 0, release: Release::Current },
    Step { replica: 1, release: Release::Previous },
    Step { replica: 0, release: Release::Current },
    Step { replica: 1, release: Release::Current },
    Step { replica: 0, release: Release::Previous },
    Step { replica: 1, release: Release::Previous },
    Step { replica: 0, release: Release::Previous },
    Step { replica: 0, release: Release::Current },
    Step { replica: 1, release: Release::Current },
];

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_rollback_under_load_lose_and_duplicate_nothing() {
    let Some(previous) = previous_program() else {
        println!("PREVIOUS_BINARY names no program; `./dev test` builds it from the history");
        return;
    };
    let (rabbitmq, postgres) =
        (Cluster::start(1).await, Database::start(Replication::Synchronous).await);
    let mut stage = Stage::set_up(2, rabbitmq, postgres).await;
    for replica in &mut stage.replicas {
        replica.start_program(&previous, &stage.world, &[]);
    }
    stage.wait_until_ready().await.expect("the previous release starts");
    collect_outcomes(&stage.world).await;
    let load = Load::new(SIGNUPS, &mut fastrand::Rng::with_seed(SEED));
    for person in &load.refused {
        let refusal = json!({ "kind": "refuse", "identifier": person, "field": "attributes.plan" });
        stage.world.fault(refusal).await;
    }
    stage.world.fault(json!({ "kind": "latency", "ms": CALL_LATENCY_MS })).await;
    stage.world.fault(json!({ "kind": "status", "status": 503, "share": 0.1 })).await;
    let amqp_url = stage.world.amqp_url.clone();
    let publishing = load.publish(&amqp_url, LOAD_DURATION);
    tokio::join!(take_all_steps(&mut stage, &previous), publishing);
    stage.end_faults().await.expect("this release is ready");

    let mut violations = check::wait_until_idle(&stage, false).await;
    the_integrity_check_passes(&stage).await;
    for replica in &mut stage.replicas {
        replica.terminate().await;
    }
    violations.extend(check::find_violations(&stage, &load, STEPS.len()).await);
    violations.truncate(PRINTED_VIOLATIONS);
    assert!(violations.is_empty(), "{violations:#?}");
}

async fn take_all_steps(stage: &mut Stage, previous: &Path) {
    for step in STEPS {
        stage.replicas[step.replica].terminate().await;
        match step.release {
            Release::Current => stage.replicas[step.replica].start(&stage.world),
            // The schema is newer than the previous release, which refuses to migrate it.
            Release::Previous => {
                let migrate = ("CUSTOMERIO_SYNC__DATABASE__MIGRATE", "false".to_owned());
                stage.replicas[step.replica].start_program(previous, &stage.world, &[migrate]);
            }
        }
        let ready = stage.wait_until_ready().await;
        ready.unwrap_or_else(|reason| panic!("{step:?}: {reason}"));
        tokio::time::sleep(STEP_DURATION).await;
    }
}

/// What one release wrote, the other also counts: ledger, mirror, flags and queues agree.
async fn the_integrity_check_passes(stage: &Stage) {
    wait_for("the integrity check to pass", || async {
        let report = stage.replicas[0].request(&stage.world, "GET", "/integrity", None).await?;
        (report["holds"] == true).then_some(())
    })
    .await;
}
