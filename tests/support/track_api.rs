//! The Track API client, called without the rest of the service.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use customerio_sync::{
    customerio::{CustomerIo, PushResult, PushedJob},
    job::{ClaimedJob, Outcome},
    ledger::{ClaimOutcome, Ledger},
    runtime::trace::SpanLink,
};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{World, arrival};

/// Creates the jobs of these submissions and claims them.
pub(crate) async fn claimed_jobs(world: &World, events: &[Value]) -> Vec<ClaimedJob> {
    let ledger = Ledger::new(&world.config().database, &world.config().tls, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    let arrivals: Vec<_> = events.iter().map(|event| arrival(event, false)).collect();
    let batch = ledger.claim(Uuid::new_v4(), &arrivals).await.expect("claimed");
    let claimed = |outcome| match outcome {
        ClaimOutcome::Claimed(job) => *job,
        other => panic!("expected a claimed job, got {other:?}"),
    };
    batch.outcomes.into_iter().map(claimed).collect()
}

/// A client with a rate limit that the test does not reach.
pub(crate) fn client(world: &World) -> CustomerIo {
    let config = world.config();
    let client = CustomerIo::new(&config.customerio, &config.tls, config.breaker, Arc::default())
        .expect("the settings are valid");
    client.rate_limiter().grant(900.0, tokio::time::Instant::now() + Duration::from_secs(3600));
    client
}

/// Keeps every claim.
fn retain_all(jobs: Vec<Uuid>) -> BoxFuture<'static, HashSet<Uuid>> {
    Box::pin(async move { HashSet::from_iter(jobs) })
}

/// Sends the jobs and returns the outcome of each, in the same order. Those that are not sent,
/// because another job of their person goes first, are sent again.
pub(crate) async fn push(client: &CustomerIo, jobs: &[ClaimedJob]) -> Vec<Outcome> {
    let mut outcomes: HashMap<Uuid, Outcome> = HashMap::new();
    while outcomes.len() < jobs.len() {
        let unsent = jobs.iter().filter(|job| !outcomes.contains_key(&job.job.id));
        let prepared: Vec<_> = unsent.map(|job| client.prepare(job, SpanLink::default())).collect();
        let (ended, mut results) = mpsc::channel(jobs.len());
        client.push(prepared, &client.permit().await, &retain_all, ended).await;
        while let Some(pushed) = results.recv().await {
            for PushedJob { job_id, result } in pushed {
                match result {
                    PushResult::Attempted { attempt, .. } => {
                        assert_eq!(outcomes.insert(job_id, attempt.outcome), None);
                    }
                    PushResult::NotSent => {}
                    PushResult::ClaimLost => panic!("every claim is kept"),
                }
            }
        }
    }
    jobs.iter().map(|job| outcomes[&job.job.id].clone()).collect()
}
