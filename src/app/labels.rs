//! The values of the labels of all metrics, so that every series exists from the start.

use crate::{
    broker::{Destination, MIRROR_QUEUE, PublishResult, Topology, WorkQueue},
    customerio::{BreakerReason, CallRateOf, CallStatus},
    flows::{
        recovery::RecoveryAction,
        sync::{AttemptResult, IntakeResult, SkipReason},
    },
    job::{ErrorType, Reason, SyncPhase},
    ledger::{LeaderTask, Ledger},
    retry::Ladder,
    runtime::metrics::{Metrics, ServerConnection, create_series},
};

/// The texts of all variants of a `text_enum!`.
macro_rules! texts {
    ($labels:ty) => {
        <$labels>::ALL.iter().map(|label| label.as_str()).collect::<Vec<_>>()
    };
}

/// Creates the metrics with every series that has a value from the start.
///
/// `admin` creates those of its routes. The counts of ledger and queues have no value yet, and the
/// discrepancies only on the leader of the integrity check.
pub(super) fn metrics(ladder: &Ladder, topology: &Topology) -> Metrics {
    let metrics = Metrics::default();
    let work_queues = WorkQueue::ALL.map(WorkQueue::name);
    let consumed_queues = [work_queues.as_slice(), &[MIRROR_QUEUE]].concat();
    let tiers: Vec<_> = ladder.tiers().iter().map(|tier| tier.name.as_str()).collect();
    let phases = texts!(SyncPhase);
    let broker = [ServerConnection::Consume.as_str(), ServerConnection::Publish.as_str()];
    let servers = [broker.as_slice(), &[ServerConnection::Database.as_str()]].concat();

    create_series(&metrics.events, &[&work_queues, &texts!(IntakeResult)]);
    create_series(&metrics.jobs, &[&phases, &texts!(AttemptResult)]);
    create_series(&metrics.skipped, &[&texts!(SkipReason)]);
    create_series(&metrics.calls, &[&texts!(CallStatus)]);
    create_series(&metrics.call_rate_limit, &[&texts!(CallRateOf)]);
    create_series(&metrics.event_to_accepted, &[&phases]);
    create_series(&metrics.retries, &[&tiers]);
    create_series(&metrics.failures, &[&texts!(Reason), &texts!(ErrorType)]);
    create_series(&metrics.breaker_open_since, &[&texts!(BreakerReason)]);
    create_series(&metrics.leading, &[&texts!(LeaderTask)]);
    create_series(&metrics.publishes, &[&texts!(Destination), &texts!(PublishResult)]);
    create_series(&metrics.reconnects, &[&broker]);
    create_series(&metrics.mirrored, &[&texts!(Reason)]);
    create_series(&metrics.recovered, &[&texts!(RecoveryAction)]);
    create_series(&metrics.connections.connected, &[&servers]);
    create_series(&metrics.connections.failures, &[&servers]);
    create_series(&metrics.queues.consuming, &[&consumed_queues]);
    create_series(&metrics.queues.repaired, &[&consumed_queues]);
    create_series(&metrics.queues.restored, &[&topology.names().collect::<Vec<_>>()]);
    metrics.ledger.schema_version_wanted.set(Ledger::schema_version_wanted());
    metrics
}
