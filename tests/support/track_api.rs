//! The Track API client, called without the rest of the service.

use std::{collections::HashSet, sync::Arc, time::Duration};

use customerio_sync::{
    customerio::{CustomerIo, PushResult},
    job::{ClaimedJob, Outcome},
    ledger::{ClaimOutcome, Ledger},
};
use futures_util::future::BoxFuture;
use serde_json::Value;
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
    let mut outcomes = vec![None; jobs.len()];
    while outcomes.iter().any(Option::is_none) {
        let unsent: Vec<_> = (0..jobs.len()).filter(|&index| outcomes[index].is_none()).collect();
        let remaining: Vec<_> = unsent.iter().map(|&index| jobs[index].clone()).collect();
        let results = client.push(&remaining, &[], &client.permit().await, &retain_all).await;
        for (index, result) in unsent.into_iter().zip(results) {
            match result {
                PushResult::Attempted { attempt, .. } => outcomes[index] = Some(attempt.outcome),
                PushResult::NotSent => {}
                PushResult::ClaimLost => panic!("every claim is kept"),
            }
        }
    }
    outcomes.into_iter().flatten().collect()
}
