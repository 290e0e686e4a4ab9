//! Every metric of the service, defined once. Names and units follow
//! <https://prometheus.io/docs/practices/naming/>. Label values come from enums, or are the names
//! of the configured tiers. `docs/observability.md` describes every metric, and a test compares the
//! two.
//!
//! A series exists from the start if 0 is a true value then ([`create_series`]). A gauge whose
//! value is not known yet has no series, because an alert would read 0 as a good value.

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Collector, MetricVec, MetricVecBuilder},
};

use super::text_enum::text_enum;

text_enum! {
    /// A connection to a server, as a metric label.
    ServerConnection {
        /// The connection to RabbitMQ that consumes.
        Consume = "consume",
        /// The connection to RabbitMQ that publishes.
        Publish = "publish",
        /// The connections to PostgreSQL.
        Database = "database",
        /// The connections to Customer.io. They are opened per call, so only their certificate is
        /// reported.
        CustomerIo = "customerio",
    }
}

/// All metrics, and the registry that renders them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Messages received from a queue, by `queue` and `result` (`accepted`, `rejected`).
    pub events: IntCounterVec,
    /// Attempts that ended, by `phase` and `outcome` (`completed`, `retried`, `failed`).
    pub jobs: IntCounterVec,
    /// Deliveries that needed no call, by `why`.
    pub skipped: IntCounterVec,
    /// Batches in flight on this replica.
    pub batches_in_flight: IntGauge,
    /// 1 in mock mode, otherwise 0.
    pub mock_mode: IntGauge,
    /// Calls to Customer.io, by `status`. None are counted in mock mode.
    pub calls: IntCounterVec,
    /// Seconds from sending a call to the end of its response.
    pub call_duration: Histogram,
    /// Calls per second, by `of`: granted to this replica (`share`), and to all replicas (`all`).
    pub call_rate_limit: GaugeVec,
    /// Seconds that a call waited for the rate limiter.
    pub call_rate_wait: Histogram,
    /// Seconds from a job's creation to its acceptance by Customer.io, by `phase`.
    pub event_to_accepted: HistogramVec,
    /// Deliveries per batch.
    pub batch_size: Histogram,
    /// Retries scheduled, by `tier`.
    pub retries: IntCounterVec,
    /// Messages published to the failure queue, by `reason` and `error_type`.
    pub failures: IntCounterVec,
    /// 1 if the circuit breaker is open or half-open, otherwise 0.
    pub breaker_open: IntGauge,
    /// Unix time at which the circuit breaker opened, by `reason`; 0 for reasons that do not apply.
    pub breaker_open_since: IntGaugeVec,
    /// 1 if this replica is the leader of `task`, otherwise 0.
    pub leading: IntGaugeVec,
    /// Discrepancies that the integrity check found, by `kind`. Only the leader has it.
    pub drift: IntGaugeVec,
    /// Publishes, by `destination` and `result` (`confirmed`, `returned`, `nacked`, `lost`).
    pub publishes: IntCounterVec,
    /// Messages whose confirm is overdue.
    pub publishes_overdue: IntGauge,
    /// Reconnects to RabbitMQ, by `connection`.
    pub reconnects: IntCounterVec,
    /// Messages of the failure queue copied into the mirror, by `reason`.
    pub mirrored: IntCounterVec,
    /// Jobs that recovery acted on, by `what` it did (`reset`, `resent`, `reparked`).
    pub recovered: IntCounterVec,
    /// Outcomes that were dropped because RabbitMQ did not confirm them in time.
    pub outcomes_dropped: IntCounter,
    /// Passes of retention in which rows were not deleted, or partitions not added.
    pub retention_failed_passes: IntCounter,
    /// The connections to servers.
    pub connections: ConnectionMetrics,
    /// The queues in RabbitMQ.
    pub queues: QueueMetrics,
    /// Counts of the ledger.
    pub ledger: LedgerMetrics,
    /// Requests to the HTTP server.
    pub http: HttpMetrics,
}

/// Metrics of the connections to servers, by [`ServerConnection`].
#[derive(Debug)]
pub struct ConnectionMetrics {
    /// 1 while the connection is open, otherwise 0. The database counts as connected if it answered
    /// the last ping.
    pub connected: IntGaugeVec,
    /// Failed attempts to connect, and pings that the database did not answer.
    pub failures: IntCounterVec,
    certificate_expiry: IntGaugeVec,
}

impl ConnectionMetrics {
    /// Sets the Unix time at which the first of the connection's configured certificates expires.
    pub fn set_certificate_expiry(&self, connection: ServerConnection, expires_at: i64) {
        self.certificate_expiry.with_label_values(&[connection.as_str()]).set(expires_at);
    }
}

/// Metrics of the queues in RabbitMQ, by `queue`.
#[derive(Debug, Clone)]
pub struct QueueMetrics {
    /// Ready messages. No series while the number is unknown.
    pub ready: IntGaugeVec,
    /// Consumers of all replicas. No series while the number is unknown.
    pub consumers: IntGaugeVec,
    /// 1 while this replica consumes the queue, otherwise 0.
    pub consuming: IntGaugeVec,
    /// Messages with properties that could not be decoded and were repaired.
    pub repaired: IntCounterVec,
    /// Exchanges and queues that were missing and were declared again.
    pub restored: IntCounterVec,
}

/// Counts of the ledger, the same on every replica. No series before the first count; after a
/// failure they keep their last values, and `last_read` shows their age.
#[derive(Debug)]
pub struct LedgerMetrics {
    /// Jobs, by `status`.
    pub jobs: IntGaugeVec,
    /// Failed jobs that are not dismissed, plus open unprocessable messages.
    pub open_failures: OptionalGauge,
    /// Pending jobs whose due time has passed.
    pub overdue_jobs: OptionalGauge,
    /// Seconds since the due time of the job that is overdue for longest; 0 if none is.
    pub oldest_overdue: OptionalGauge,
    /// Seconds since the oldest claim; 0 if no job is claimed.
    pub oldest_processing: OptionalGauge,
    /// Signups of the last 24 hours that are not in Customer.io.
    pub unsynced_signups: OptionalGauge,
    /// Age of the oldest of them in seconds; 0 if there is none.
    pub oldest_unsynced: OptionalGauge,
    /// Outcomes that RabbitMQ has not confirmed.
    pub outcomes_waiting: OptionalGauge,
    /// Age of the oldest messages that must follow a settled job and are not confirmed, in seconds.
    pub oldest_outbox: OptionalGauge,
    /// Open jobs whose event is about to pass, or has passed, the age at which it starts no
    /// campaign, by `state`.
    pub late_jobs: IntGaugeVec,
    /// Bulk retries that are running.
    pub bulk_retries_running: OptionalGauge,
    /// Unix time of the last count, by the clock of the database.
    pub last_read: OptionalGauge,
    /// Version of the schema in the database.
    pub schema_version: OptionalGauge,
    /// Version of the schema that this program needs.
    pub schema_version_wanted: IntGauge,
}

/// Metrics of the HTTP server.
#[derive(Debug)]
pub struct HttpMetrics {
    /// Completed requests, by `route`, `method` and `status`.
    pub requests: IntCounterVec,
    /// Seconds from the head of a request to the head of its response, by `route` and `method`.
    pub duration: HistogramVec,
    /// Requests with an unknown token.
    pub wrong_tokens: IntCounter,
    /// WebSocket clients.
    pub websocket_clients: IntGauge,
}

/// A gauge without a value until it is set.
#[derive(Debug, Clone)]
pub struct OptionalGauge(IntGaugeVec);

impl OptionalGauge {
    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.0.with_label_values::<&str>(&[]).set(value);
    }

    /// Removes the value, because it is unknown.
    pub fn clear(&self) {
        self.0.reset();
    }
}

/// Counts one in a gauge until it is dropped.
#[derive(Debug)]
#[must_use = "the count ends when this is dropped"]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    /// Adds one to `gauge`.
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Creates the series of every combination of label values, at 0. `labels` contains the values of
/// each label, in the order of the labels. Without it, a query for the increase of a counter does
/// not see the first increase.
pub fn create_series<B: MetricVecBuilder>(family: &MetricVec<B>, labels: &[&[&str]]) {
    let mut combinations: Vec<Vec<&str>> = vec![Vec::new()];
    for values in labels {
        let mut longer = Vec::new();
        for combination in &combinations {
            for value in values.iter() {
                let mut combination = combination.clone();
                combination.push(*value);
                longer.push(combination);
            }
        }
        combinations = longer;
    }
    for combination in &combinations {
        family.with_label_values(combination);
    }
}

const PREFIX: &str = "customerio_sync_";

/// Histogram buckets in seconds, from a millisecond to an hour.
const DURATION_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0,
    3600.0,
];

/// Histogram buckets in seconds of the age of a job. The default ladder takes 3905 seconds.
const AGE_BUCKETS: [f64; 14] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 7200.0, 86400.0];

/// Histogram buckets in seconds of requests to the HTTP server.
const REQUEST_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// Histogram buckets of the deliveries per batch.
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

struct Registrar(Registry);

impl Registrar {
    fn add<C: Collector + Clone + 'static>(&self, created: prometheus::Result<C>) -> C {
        let collector = created.expect("names and labels are valid: they are constants");
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("{PREFIX}{name}"), help)
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::with_opts(Self::opts(name, help)))
    }

    fn counters(&self, name: &str, labels: &[&str], help: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Self::opts(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::with_opts(Self::opts(name, help)))
    }

    fn optional_gauge(&self, name: &str, help: &str) -> OptionalGauge {
        OptionalGauge(self.add(IntGaugeVec::new(Self::opts(name, help), &[])))
    }

    fn gauges(&self, name: &str, label: &str, help: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Self::opts(name, help), &[label]))
    }

    fn histogram_opts(name: &str, buckets: &[f64], help: &str) -> HistogramOpts {
        HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(buckets.to_vec())
    }

    fn histogram(&self, name: &str, buckets: &[f64], help: &str) -> Histogram {
        self.add(Histogram::with_opts(Self::histogram_opts(name, buckets, help)))
    }

    fn histograms(&self, name: &str, labels: &[&str], buckets: &[f64], help: &str) -> HistogramVec {
        self.add(HistogramVec::new(Self::histogram_opts(name, buckets, help), labels))
    }

    /// Registers the version and the revision of this program. The build sets the revision in the
    /// environment variable `CUSTOMERIO_SYNC_REVISION`.
    fn build_info(&self) {
        let opts = Self::opts("build_info", "Version and revision of this program; always 1.");
        let info = self.add(IntGaugeVec::new(opts, &["version", "revision"]));
        let revision = option_env!("CUSTOMERIO_SYNC_REVISION").unwrap_or("unknown");
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
    }

    /// Registers CPU time, memory, threads and file descriptors of this process, which are read
    /// from `/proc`.
    #[cfg(target_os = "linux")]
    fn process(&self) {
        let collector = prometheus::process_collector::ProcessCollector::for_self();
        self.0.register(Box::new(collector)).expect("its names are registered once");
    }

    #[cfg(not(target_os = "linux"))]
    fn process(&self) {}

    #[rustfmt::skip] // name and help on two lines
    fn connections(&self) -> ConnectionMetrics {
        ConnectionMetrics {
            connected: self.gauges("connected", "connection",
                "Whether the connection is open; for the database, whether it answered a ping."),
            failures: self.counters("connection_failures_total", &["connection"],
                "Failed attempts to connect, and pings that the database did not answer."),
            certificate_expiry: self.gauges("certificate_expiry_timestamp_seconds", "connection",
                "Unix time at which the first configured certificate of the connection expires."),
        }
    }

    #[rustfmt::skip] // name and help on two lines
    fn queues(&self) -> QueueMetrics {
        QueueMetrics {
            ready: self.gauges("queue_messages_ready", "queue",
                "Messages that are ready in a queue; the same on every replica."),
            consumers: self.gauges("queue_consumers", "queue",
                "Consumers of a queue, of all replicas; the same on every replica."),
            consuming: self.gauges("consuming", "queue",
                "Whether this replica consumes a queue."),
            repaired: self.counters("repaired_messages_total", &["queue"],
                "Messages received whose properties could not be decoded and were repaired."),
            restored: self.counters("restored_objects_total", &["object"],
                "Exchanges and queues that were missing and were declared again."),
        }
    }

    #[rustfmt::skip] // name and help on two lines
    fn ledger(&self) -> LedgerMetrics {
        LedgerMetrics {
            jobs: self.gauges("jobs", "status",
                "Jobs in the ledger; the same on every replica."),
            open_failures: self.optional_gauge("open_failures",
                "Failed jobs that are not dismissed, and open unprocessable messages; the same on \
                    every replica."),
            overdue_jobs: self.optional_gauge("overdue_jobs",
                "Pending jobs whose due time has passed; the same on every replica."),
            oldest_overdue: self.optional_gauge("oldest_overdue_job_age_seconds",
                "Time since the due time of the job that is overdue for longest, or 0; the same on \
                    every replica."),
            oldest_processing: self.optional_gauge("oldest_processing_job_age_seconds",
                "Time since the oldest claim on a job, or 0; the same on every replica."),
            unsynced_signups: self.optional_gauge("unsynced_signups",
                "Signups of the last 24 hours that are not in Customer.io and not dismissed; the \
                    same on every replica."),
            oldest_unsynced: self.optional_gauge("oldest_unsynced_signup_age_seconds",
                "Age of the oldest signup of the last 24 hours that is not in Customer.io, or 0; \
                    the same on every replica."),
            outcomes_waiting: self.optional_gauge("outcomes_waiting",
                "Outcomes that RabbitMQ has not confirmed; the same on every replica."),
            oldest_outbox: self.optional_gauge("oldest_outbox_age_seconds",
                "Age of the oldest messages of settled jobs that RabbitMQ has not confirmed, or 0; \
                    the same on every replica."),
            late_jobs: self.gauges("late_jobs", "state",
                "Open jobs whose event is older than 60 hours (due_soon) or 72 hours (passed); \
                    the same on every replica."),
            bulk_retries_running: self.optional_gauge("bulk_retries_running",
                "Bulk retries that are running; the same on every replica."),
            last_read: self.optional_gauge("ledger_last_read_timestamp_seconds",
                "Unix time at which this replica counted the open work of the ledger."),
            schema_version: self.optional_gauge("schema_version",
                "Version of the schema in the database; the same on every replica."),
            schema_version_wanted: self.gauge("schema_version_wanted",
                "Version of the schema that this program needs."),
        }
    }

    #[rustfmt::skip] // name and help on two lines
    fn http(&self) -> HttpMetrics {
        HttpMetrics {
            requests: self.counters("http_requests_total", &["route", "method", "status"],
                "Completed requests to the HTTP server."),
            duration: self.histograms("http_request_duration_seconds", &["route", "method"],
                &REQUEST_BUCKETS, "Duration of a request to the HTTP server."),
            wrong_tokens: self.counter("wrong_tokens_total",
                "Requests with an unknown token."),
            websocket_clients: self.gauge("websocket_clients",
                "WebSocket clients."),
        }
    }
}

impl Default for Metrics {
    #[rustfmt::skip] // one metric per line, or name and help on two
    fn default() -> Self {
        let registrar = Registrar(Registry::new());
        let r = &registrar;
        r.build_info();
        r.process();
        Self {
            events: r.counters("events_total", &["queue", "result"],
                "Messages received from a queue."),
            jobs: r.counters("job_attempts_total", &["phase", "outcome"],
                "Attempts that ended."),
            skipped: r.counters("skipped_deliveries_total", &["why"],
                "Deliveries that needed no call."),
            batches_in_flight: r.gauge("batches_in_flight",
                "Batches in flight."),
            mock_mode: r.gauge("mock_mode",
                "Whether no calls are made because credentials are missing."),
            calls: r.counters("calls_total", &["status"],
                "Calls to Customer.io."),
            call_duration: r.histogram("call_duration_seconds", &DURATION_BUCKETS,
                "Duration of a call to Customer.io."),
            call_rate_limit: r.add(GaugeVec::new(Registrar::opts("call_rate_limit",
                "Calls per second that this replica (share) and all replicas (all) may make."),
                &["of"])),
            call_rate_wait: r.histogram("call_rate_wait_seconds", &DURATION_BUCKETS,
                "Time that a call waited for the rate limiter."),
            event_to_accepted: r.histograms("event_to_accepted_seconds", &["phase"], &AGE_BUCKETS,
                "Time from a job's creation to its acceptance by Customer.io."),
            batch_size: r.histogram("batch_deliveries", &BATCH_BUCKETS,
                "Deliveries per batch."),
            retries: r.counters("retries_total", &["tier"],
                "Retries scheduled."),
            failures: r.counters("failures_total", &["reason", "error_type"],
                "Messages published to the failure queue."),
            breaker_open: r.gauge("breaker_open",
                "Whether the circuit breaker for Customer.io is open or half-open."),
            breaker_open_since: r.gauges("breaker_open_since_timestamp_seconds", "reason",
                "Unix time at which the circuit breaker opened; 0 for reasons that do not apply."),
            leading: r.gauges("leading", "task",
                "Whether this replica runs a task that runs on one replica at a time."),
            drift: r.gauges("integrity_drift", "kind",
                "Discrepancies between ledger, mirror and queues."),
            publishes: r.counters("publishes_total", &["destination", "result"],
                "Publishes to RabbitMQ."),
            publishes_overdue: r.gauge("publishes_overdue",
                "Messages that RabbitMQ has not confirmed in time."),
            reconnects: r.counters("reconnects_total", &["connection"],
                "Reconnects to RabbitMQ."),
            mirrored: r.counters("mirrored_total", &["reason"],
                "Messages of the failure queue copied into the mirror."),
            recovered: r.counters("recovered_jobs_total", &["what"],
                "Jobs that recovery acted on."),
            outcomes_dropped: r.counter("outcomes_dropped_total",
                "Outcomes that were dropped because RabbitMQ did not confirm them in time."),
            retention_failed_passes: r.counter("retention_failed_passes_total",
                "Passes of retention in which rows were not deleted, or partitions not added."),
            connections: r.connections(),
            queues: r.queues(),
            ledger: r.ledger(),
            http: r.http(),
            registry: registrar.0,
        }
    }
}

impl Metrics {
    /// Renders all metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("writing to memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}
