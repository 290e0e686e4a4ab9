//! Failover of PostgreSQL under load: the primary is killed and its standby is promoted. A
//! synchronous standby has every reported commit. An asynchronous one may lack the last ones.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    CALL_LATENCY_MS, REPLICAS, SIGNUPS, check,
    cluster::Cluster,
    database::{Database, Replication},
    fault::Fault,
    load::Load,
    run_round,
    stage::Stage,
};

/// Time during which messages are published while primaries fail.
const LOAD_DURATION: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(5);
/// Time for which the asynchronous standby receives nothing before its primary fails.
const LAG: Duration = Duration::from_secs(2);
const SEED: u64 = 1;

async fn fail_over_three_times(stage: &mut Stage, _: &mut fastrand::Rng) -> Vec<Fault> {
    let mut faults = Vec::new();
    for downtime in [0, 1, 5].map(Duration::from_secs) {
        tokio::time::sleep(PAUSE).await;
        let fault = Fault::FailOver { downtime };
        fault.inject(stage).await;
        faults.push(fault);
    }
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn failovers_to_a_synchronous_standby_lose_and_duplicate_nothing() {
    let servers = (Cluster::start(1).await, Database::start(Replication::Synchronous).await);
    let round = run_round(SEED, servers, LOAD_DURATION, fail_over_three_times).await;
    round.assert_no_violations();
}

/// The ledger has lost what an asynchronous standby lacks. The rest is processed, and no event is
/// tracked twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_an_asynchronous_standby_loses_only_what_the_standby_lacks() {
    let (rabbitmq, postgres) =
        (Cluster::start(1).await, Database::start(Replication::Asynchronous).await);
    let load = Load::new(SIGNUPS, &mut fastrand::Rng::with_seed(SEED));
    let mut stage = Stage::set_up(REPLICAS, rabbitmq, postgres).await;
    stage.start();
    stage.wait_until_ready().await.expect("all replicas are ready before the failover");
    stage.world.fault(json!({ "kind": "latency", "ms": CALL_LATENCY_MS })).await;
    let amqp_url = stage.world.amqp_url.clone();
    let lag_and_fail_over = async {
        tokio::time::sleep(PAUSE).await;
        stage.postgres.hold_back_standby();
        tokio::time::sleep(LAG).await;
        stage.fail_over(Duration::ZERO).await;
    };
    tokio::join!(load.publish(&amqp_url, LOAD_DURATION / 2), lag_and_fail_over);
    stage.wait_until_ready().await.expect("all replicas are ready after the failover");
    // A job whose result is lost is claimed and has no message.
    let not_idle = check::wait_until_idle(&stage, true).await;
    assert!(not_idle.is_empty(), "{not_idle:?}");
    let jobs: Vec<(Uuid, String)> =
        sqlx::query_as("SELECT signup_id, sync_phase FROM signup_customerio_sync_jobs")
            .fetch_all(&stage.world.pool)
            .await
            .expect("the jobs");
    let jobs: HashSet<_> = jobs.into_iter().collect();
    let published: HashSet<_> =
        load.jobs.iter().map(|(signup, phase)| (*signup, (*phase).to_owned())).collect();
    let lost: Vec<_> = published.difference(&jobs).collect();
    let tracked = stage.world.events().await;
    let is_tracked = |(signup, phase): &(Uuid, String)| {
        let name = check::tracked_name(phase);
        let signup = signup.to_string();
        tracked.iter().any(|one| {
            one["name"] == name && one["attributes"]["signup_id"].as_str() == Some(&signup)
        })
    };
    let untracked = lost.iter().filter(|job| !is_tracked(job)).count();
    println!(
        "of {} jobs, {} are lost after a lag of {LAG:?}; {untracked} of these were not tracked",
        published.len(),
        lost.len()
    );
    let event = |one: &Value| (one["name"].to_string(), one["attributes"]["signup_id"].to_string());
    let distinct: HashSet<_> = tracked.iter().map(event).collect();
    assert_eq!(distinct.len(), tracked.len(), "no event was tracked twice");
    assert!(!lost.is_empty(), "the standby lacked nothing");
    let rate = published.len() as f64 / (LOAD_DURATION / 2).as_secs_f64();
    assert!((lost.len() as f64) < 4.0 * rate * LAG.as_secs_f64(), "{} are lost", lost.len());
    for replica in &mut stage.replicas {
        replica.terminate().await;
    }
}
