//! Every metric of the service, defined once. Names and units follow
//! <https://prometheus.io/docs/practices/naming/>. Label values come from enums, or are the names
//! of the configured tiers.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

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
    /// Calls to Customer.io, by `status`.
    pub calls: IntCounterVec,
    /// Seconds from sending a call to the end of its response.
    pub call_duration: Histogram,
    /// Seconds from a job's creation to its acceptance by Customer.io, by `phase`.
    pub event_to_accepted: HistogramVec,
    /// Deliveries per batch.
    pub batch_size: Histogram,
    /// Retries scheduled, by `tier`.
    pub retries: IntCounterVec,
    /// Messages published to the failure queue, by `reason` and `error_type`.
    pub failures: IntCounterVec,
    /// Jobs in the ledger, by `status`.
    pub jobs_by_status: IntGaugeVec,
    /// Failed jobs that are not dismissed, plus open unprocessable messages.
    pub open_failures: IntGauge,
    /// Age of the oldest pending job in seconds; 0 if no job is pending.
    pub oldest_pending: IntGauge,
    /// 1 if the circuit breaker is open or half-open, otherwise 0.
    pub breaker_open: IntGauge,
    /// 1 in mock mode, otherwise 0.
    pub mock_mode: IntGauge,
    /// Unix time at which the circuit breaker opened, by `reason`; 0 for reasons that do not apply.
    pub breaker_open_since: IntGaugeVec,
    /// Discrepancies that the integrity check found, by `kind`. Only the leader has it.
    pub drift: IntGaugeVec,
    /// Publishes, by `destination` and `result` (`confirmed`, `returned`, `nacked`, `lost`).
    pub publishes: IntCounterVec,
    /// Reconnects to RabbitMQ, by `connection`.
    pub reconnects: IntCounterVec,
    /// Failures copied into the mirror.
    pub mirrored: IntCounter,
    /// Jobs that recovery acted on, by `what` it did (`reset`, `resent`, `reparked`).
    pub recovered: IntCounterVec,
}

const PREFIX: &str = "customerio_sync_";

/// Histogram buckets in seconds, from a millisecond to the longest tier.
const DURATION_BUCKETS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0,
    3600.0,
];

/// Histogram buckets of the deliveries per batch.
const BATCH_BUCKETS: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

struct Registrar(Registry);

impl Registrar {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        created: prometheus::Result<C>,
    ) -> C {
        let collector = created.expect("names and labels are valid: they are constants");
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(format!("{PREFIX}{name}"), help))
    }

    fn counters(&self, name: &str, labels: &[&str], help: &str) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(format!("{PREFIX}{name}"), help))
    }

    fn gauges(&self, name: &str, label: &str, help: &str) -> IntGaugeVec {
        self.add(IntGaugeVec::new(Opts::new(format!("{PREFIX}{name}"), help), &[label]))
    }

    fn histogram_opts(name: &str, buckets: &[f64], help: &str) -> HistogramOpts {
        HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(buckets.to_vec())
    }

    fn histogram(&self, name: &str, buckets: &[f64], help: &str) -> Histogram {
        self.add(Histogram::with_opts(Self::histogram_opts(name, buckets, help)))
    }

    fn histograms(&self, name: &str, label: &str, buckets: &[f64], help: &str) -> HistogramVec {
        self.add(HistogramVec::new(Self::histogram_opts(name, buckets, help), &[label]))
    }
}

impl Default for Metrics {
    #[rustfmt::skip] // one metric per line, or name and help on two
    fn default() -> Self {
        let registrar = Registrar(Registry::new());
        let r = &registrar;
        Self {
            events: r.counters("events_total", &["queue", "result"],
                "Messages received from a queue."),
            jobs: r.counters("job_attempts_total", &["phase", "outcome"],
                "Attempts that ended."),
            skipped: r.counters("skipped_deliveries_total", &["why"],
                "Deliveries that needed no call."),
            calls: r.counters("calls_total", &["status"],
                "Calls to Customer.io."),
            call_duration: r.histogram("call_duration_seconds", &DURATION_BUCKETS,
                "Duration of a call to Customer.io."),
            event_to_accepted: r.histograms("event_to_accepted_seconds", "phase", &DURATION_BUCKETS,
                "Time from a job's creation to its acceptance by Customer.io."),
            batch_size: r.histogram("batch_deliveries", &BATCH_BUCKETS,
                "Deliveries per batch."),
            retries: r.counters("retries_total", &["tier"],
                "Retries scheduled."),
            failures: r.counters("failures_total", &["reason", "error_type"],
                "Messages published to the failure queue."),
            jobs_by_status: r.gauges("jobs", "status",
                "Jobs in the ledger."),
            open_failures: r.gauge("open_failures",
                "Failed jobs that are not dismissed, plus open unprocessable messages."),
            oldest_pending: r.gauge("oldest_pending_job_age_seconds",
                "Age of the oldest pending job."),
            breaker_open: r.gauge("breaker_open",
                "Whether the circuit breaker for Customer.io is open or half-open."),
            mock_mode: r.gauge("mock_mode",
                "Whether the service is in mock mode, in which no call to Customer.io is made."),
            breaker_open_since: r.gauges("breaker_open_since_timestamp_seconds", "reason",
                "Unix time at which the circuit breaker opened; 0 for reasons that do not apply."),
            drift: r.gauges("integrity_drift", "kind",
                "Discrepancies between ledger, mirror and queues."),
            publishes: r.counters("publishes_total", &["destination", "result"],
                "Publishes to RabbitMQ."),
            reconnects: r.counters("reconnects_total", &["connection"],
                "Reconnects to RabbitMQ."),
            recovered: r.counters("recovered_jobs_total", &["what"],
                "Jobs that recovery acted on."),
            mirrored: r.counter("mirrored_total",
                "Failures copied into the mirror."),
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
