//! The names of exchanges, queues and headers. They appear nowhere else in `src`.

use crate::{event::EventType, retry::Tier};

/// The default exchange, which routes each message to the queue that its routing key names.
pub(super) const DEFAULT_EXCHANGE: &str = "";
/// The topic exchange that upstream services publish events to.
pub const EVENTS_EXCHANGE: &str = "signup.events";
/// The topic exchange of the outcomes.
pub const UPDATES_EXCHANGE: &str = "signup.updates";
/// The exchange that messages for jobs are published to.
pub const JOBS_EXCHANGE: &str = "customerio-sync.jobs";
/// The fanout exchange of the failures.
pub const FAILED_EXCHANGE: &str = "customerio-sync.failed";
/// The failure queue, which people inspect in the management UI.
pub const FAILED_QUEUE: &str = "customerio-sync.failed";
/// The queue that the mirror consumes.
pub const MIRROR_QUEUE: &str = "customerio-sync.failed.mirror";

/// The queue of messages that end their consumers again and again. The service never consumes it.
pub const QUARANTINE_QUEUE: &str = "customerio-sync.quarantine";

/// Name of the default exchange in spans. In AMQP its name is empty.
pub(super) const DEFAULT_EXCHANGE_LABEL: &str = "amq.default";

/// Start of the names of all delay tiers.
pub(super) const TIER_PREFIX: &str = "customerio-sync.retry.";

/// Name of a tier's exchange and of its queue.
pub fn tier_queue(tier: &Tier) -> String {
    tier_queue_of(&tier.name)
}

/// Name of the queue of the tier with this name, such as `5s`.
pub fn tier_queue_of(tier_name: &str) -> String {
    format!("{TIER_PREFIX}{tier_name}")
}

/// A queue whose messages ask for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkQueue {
    /// Events of one type.
    Events(EventType),
    /// Jobs that return from a tier, or that an operator retries.
    Jobs,
}

impl WorkQueue {
    /// All work queues.
    pub const ALL: [Self; 3] =
        [Self::Events(EventType::Submitted), Self::Events(EventType::Confirmed), Self::Jobs];

    /// Name of the queue.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events(EventType::Submitted) => "customerio-sync.signup-submitted",
            Self::Events(EventType::Confirmed) => "customerio-sync.extraction-confirmed",
            Self::Jobs => "customerio-sync.jobs",
        }
    }

    /// The exchange and the routing key that the queue is bound to.
    pub(super) const fn source(self) -> (&'static str, &'static str) {
        match self {
            Self::Events(event_type) => (EVENTS_EXCHANGE, event_type.routing_key()),
            Self::Jobs => (JOBS_EXCHANGE, ""),
        }
    }

    /// The exchanges that the queue receives messages from, each with the routing key that its
    /// messages have. `None` means any routing key.
    pub const fn origins(self) -> [(&'static str, Option<&'static str>); 2] {
        let (exchange, routing_key) = self.source();
        let routing_key = match self {
            Self::Events(_) => Some(routing_key),
            // A fanout exchange ignores the routing key.
            Self::Jobs => None,
        };
        [(exchange, routing_key), (DEFAULT_EXCHANGE, Some(self.name()))]
    }

    /// The work queue that received a message from `exchange` with `routing_key`. `None` if that is
    /// no origin of a work queue.
    pub fn of_origin(exchange: &str, routing_key: &str) -> Option<Self> {
        let is_origin = |(from, key): (&str, Option<&str>)| {
            from == exchange && key.is_none_or(|key| key == routing_key)
        };
        Self::ALL.into_iter().find(|queue| queue.origins().into_iter().any(is_origin))
    }
}

/// The queues whose state operators see: all but the delay tiers.
pub(super) const REPORTED_QUEUES: [&str; 6] = [
    WorkQueue::ALL[0].name(),
    WorkQueue::ALL[1].name(),
    WorkQueue::ALL[2].name(),
    MIRROR_QUEUE,
    FAILED_QUEUE,
    QUARANTINE_QUEUE,
];

/// Names of message headers.
pub mod headers {
    /// Id of the job.
    pub const JOB_ID: &str = "x-job-id";
    /// Id of the signup.
    pub const SIGNUP_ID: &str = "x-signup-id";
    /// Phase of the job.
    pub const SYNC_PHASE: &str = "x-sync-phase";
    /// Retries that were scheduled.
    pub const ATTEMPT: &str = "x-attempt";
    /// Kind of error of the last attempt.
    pub const ERROR_TYPE: &str = "x-error-type";
    /// Message of the last error.
    pub const ERROR_MESSAGE: &str = "x-error-message";
    /// Where in an unprocessable message the error is: a JSON path.
    pub const ERROR_PATH: &str = "x-error-path";
    /// When the first attempt of the run failed (RFC 3339).
    pub const FIRST_FAILED_AT: &str = "x-first-failed-at";
    /// Why the message is in the failure queue.
    pub const REASON: &str = "x-reason";
    /// When the job failed (RFC 3339).
    pub const FAILED_AT: &str = "x-failed-at";
    /// The exchange that the failed message came from.
    pub const ORIGINAL_EXCHANGE: &str = "x-original-exchange";
    /// The routing key of the failed message.
    pub const ORIGINAL_ROUTING_KEY: &str = "x-original-routing-key";
    /// The queue that a message in quarantine came from.
    pub const ORIGINAL_QUEUE: &str = "x-original-queue";
    /// The `message_id` of an unprocessable message.
    pub const ORIGINAL_MESSAGE_ID: &str = "x-original-message-id";
    /// The `content_encoding` of a message that can be replayed.
    pub const ORIGINAL_CONTENT_ENCODING: &str = "x-original-content-encoding";
    /// The `timestamp` of a message that can be replayed, in seconds since 1970.
    pub const ORIGINAL_TIMESTAMP: &str = "x-original-timestamp";
    /// Id of the failure that this message replays.
    pub const REPLAY_OF: &str = "x-replay-of";
    /// W3C trace context (<https://www.w3.org/TR/trace-context/>).
    pub const TRACEPARENT: &str = "traceparent";
    /// Data of tracing systems about the trace in [`TRACEPARENT`].
    pub const TRACESTATE: &str = "tracestate";
    /// Names what could not be decoded in the properties of the message, and was replaced or left
    /// out.
    pub const REPAIRED: &str = "x-repaired";
    /// Number of earlier deliveries of the message
    /// (<https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>).
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// RabbitMQ's record of dead-lettering (<https://www.rabbitmq.com/docs/dlx>).
    pub const DEATH: &str = "x-death";

    /// The attributes of a CloudEvents event in binary mode start with one of these
    /// (`amqp-protocol-binding.md`, section 3.1.3.1).
    pub const CLOUD_EVENTS_PREFIXES: [&str; 2] = ["cloudEvents:", "cloudEvents_"];

    /// Whether brokers add a header with this name.
    pub(crate) fn is_of_broker(name: &str) -> bool {
        [DELIVERY_COUNT, DEATH, "x-acquired-count"].contains(&name)
            || ["x-first-death-", "x-last-death-"].iter().any(|start| name.starts_with(start))
    }

    /// All of them. Other headers are the publisher's.
    pub const ALL: [&str; 22] = [
        JOB_ID,
        SIGNUP_ID,
        SYNC_PHASE,
        ATTEMPT,
        ERROR_TYPE,
        ERROR_MESSAGE,
        ERROR_PATH,
        FIRST_FAILED_AT,
        REASON,
        FAILED_AT,
        ORIGINAL_EXCHANGE,
        ORIGINAL_ROUTING_KEY,
        ORIGINAL_QUEUE,
        ORIGINAL_MESSAGE_ID,
        ORIGINAL_CONTENT_ENCODING,
        ORIGINAL_TIMESTAMP,
        REPLAY_OF,
        TRACEPARENT,
        TRACESTATE,
        REPAIRED,
        DELIVERY_COUNT,
        DEATH,
    ];

    /// The headers of a job's messages, besides [`ATTEMPT`], which is a number, and the trace
    /// context.
    pub const OF_JOB: [&str; 5] = [JOB_ID, SIGNUP_ID, SYNC_PHASE, ERROR_TYPE, FIRST_FAILED_AT];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_queue_is_found_by_each_of_its_origins() {
        for queue in WorkQueue::ALL {
            for (exchange, routing_key) in queue.origins() {
                let routing_key = routing_key.unwrap_or("any");
                assert_eq!(WorkQueue::of_origin(exchange, routing_key), Some(queue));
            }
        }
    }

    #[test]
    fn other_origins_belong_to_no_work_queue() {
        let submitted = EventType::Submitted;
        for (exchange, routing_key) in [
            ("", ""),
            ("", FAILED_QUEUE),
            ("", submitted.routing_key()),
            (EVENTS_EXCHANGE, "unknown"),
            (EVENTS_EXCHANGE, WorkQueue::Events(submitted).name()),
            ("billing", submitted.routing_key()),
            (FAILED_EXCHANGE, ""),
        ] {
            let found = WorkQueue::of_origin(exchange, routing_key);
            assert_eq!(found, None, "{exchange:?} {routing_key:?}");
        }
    }
}
