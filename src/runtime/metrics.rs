//! Every metric of the service, once. Names and units follow
//! <https://prometheus.io/docs/practices/naming/>; label values come from enums, or from the
//! configured tiers.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// All metrics, and the registry that renders them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Messages taken from a queue, by `queue` and `result` (`accepted`, `rejected`).
    pub events: IntCounterVec,
    /// Tries of jobs that ended, by `phase` and `outcome` (`completed`, `retried`, `failed`).
    pub jobs: IntCounterVec,
    /// Deliveries that needed no call, by `why`.
    pub skipped: IntCounterVec,
    /// Calls to Customer.io, by `status`.
    pub calls: IntCounterVec,
    /// Seconds from sending a call to the end of its answer.
    pub call_duration: Histogram,
    /// Seconds from a job's creation to Customer.io's acceptance, by `phase`.
    pub event_to_accepted: HistogramVec,
    /// Deliveries that were worked off together.
    pub batch_size: Histogram,
    /// Retries scheduled, by `tier`.
    pub retries: IntCounterVec,
    /// Messages parked in the failure queue, by `reason` and `error_type`.
    pub failures: IntCounterVec,
    /// Jobs in the ledger, by `status`.
    pub jobs_by_status: IntGaugeVec,
    /// Failures in the mirror that nobody has resolved.
    pub open_failures: IntGauge,
    /// Age in seconds of the oldest pending job; 0 without one.
    pub oldest_pending: IntGauge,
    /// Whether calls to Customer.io are held back: 1, else 0. Of a circuit breaker: open.
    pub gate_open: IntGauge,
    /// Since when they are, in Unix seconds, by `reason`; 0 for a reason that does not hold.
    pub gate_open_since: IntGaugeVec,
    /// Jobs and messages that are not as they should be, by `kind`; on the replica that looks, and
    /// on no other.
    pub drift: IntGaugeVec,
    /// Publishes, by `destination` and `result` (`confirmed`, `returned`, `nacked`, `lost`).
    pub publishes: IntCounterVec,
    /// Connections opened again after a loss, by `connection`.
    pub reconnects: IntCounterVec,
    /// Failures copied into the mirror.
    pub mirrored: IntCounter,
    /// Jobs that nobody worked on any more, by `what` was done with them (`reset`, `sent_again`,
    /// `parked_again`).
    pub recovered: IntCounterVec,
}

const PREFIX: &str = "customerio_sync_";

/// From a millisecond to the broker's longest tier.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0,
    3600.0,
];

struct Registrar(Registry);

impl Registrar {
    fn add<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        made: prometheus::Result<C>,
    ) -> C {
        let collector = made.expect("names and labels are valid: they are constants");
        self.0.register(Box::new(collector.clone())).expect("each name is registered once");
        collector
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(format!("{PREFIX}{name}"), help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(format!("{PREFIX}{name}"), help))
    }

    fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
        HistogramOpts::new(format!("{PREFIX}{name}"), help).buckets(buckets.to_vec())
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(Self::histogram_opts(name, help, buckets)))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let registrar = Registrar(Registry::new());
        let r = &registrar;
        let by_phase = Registrar::histogram_opts(
            "event_to_accepted_seconds",
            "Seconds from a job's creation to Customer.io's acceptance.",
            &SECONDS,
        );
        let drift = Opts::new(
            format!("{PREFIX}integrity_drift"),
            "Jobs and messages that are not as they should be.",
        );
        let open_since = Opts::new(
            format!("{PREFIX}gate_open_since_timestamp_seconds"),
            "Unix time since when calls to Customer.io are held back, by reason; 0 if not for it.",
        );
        let by_status = Opts::new(format!("{PREFIX}jobs"), "Jobs in the ledger, by status.");
        Self {
            events: r.counters(
                "events_total",
                "Messages taken from a queue.",
                &["queue", "result"],
            ),
            jobs: r.counters(
                "job_attempts_total",
                "Tries of jobs that ended.",
                &["phase", "outcome"],
            ),
            skipped: r.counters(
                "skipped_deliveries_total",
                "Deliveries that needed no call.",
                &["why"],
            ),
            calls: r.counters("calls_total", "Calls to Customer.io, by status.", &["status"]),
            call_duration: r.histogram(
                "call_duration_seconds",
                "Duration of a call to Customer.io.",
                &SECONDS,
            ),
            event_to_accepted: r.add(HistogramVec::new(by_phase, &["phase"])),
            batch_size: r.histogram(
                "batch_deliveries",
                "Deliveries that were worked off together.",
                &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0],
            ),
            retries: r.counters("retries_total", "Retries scheduled, by tier.", &["tier"]),
            failures: r.counters(
                "failures_total",
                "Messages parked in the failure queue.",
                &["reason", "error_type"],
            ),
            jobs_by_status: r.add(IntGaugeVec::new(by_status, &["status"])),
            open_failures: r.gauge("open_failures", "Failures that nobody has resolved."),
            oldest_pending: r
                .gauge("oldest_pending_job_age_seconds", "Age of the oldest pending job."),
            gate_open: r.gauge("gate_open", "Whether calls to Customer.io are held back."),
            gate_open_since: r.add(IntGaugeVec::new(open_since, &["reason"])),
            drift: r.add(IntGaugeVec::new(drift, &["kind"])),
            publishes: r.counters(
                "publishes_total",
                "Publishes to the broker.",
                &["destination", "result"],
            ),
            reconnects: r.counters(
                "reconnects_total",
                "Connections opened again after a loss.",
                &["connection"],
            ),
            recovered: r.counters(
                "recovered_jobs_total",
                "Jobs that nobody worked on any more.",
                &["what"],
            ),
            mirrored: r.add(IntCounter::new(
                format!("{PREFIX}mirrored_total"),
                "Failures copied into the mirror.",
            )),
            registry: registrar.0,
        }
    }
}

impl Metrics {
    /// All metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("writing to memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}
