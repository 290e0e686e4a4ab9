//! The export of traces: OTLP over HTTP, configured by the standard variables
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
//!
//! The exporter has a thread and a queue of its own. While the collector is away or slow, the queue
//! fills, and further spans are dropped. Nothing else waits.
//!
//! The SDK reads `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_SPAN_*_COUNT_LIMIT` and the headers by
//! itself, and ignores a value that it does not support. So most variables are checked here.

#![expect(clippy::disallowed_methods, reason = "an edge: failed exports are logged at intervals")]

use std::{
    num::{NonZeroU32, NonZeroU64},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    resource::{EnvResourceDetector, TelemetryResourceDetector},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use reqwest::{Certificate, Url, blocking::Client};
use uuid::Uuid;

/// Maximum time of one export, if no variable sets it. The specification's default.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// Minimum time between two log lines about failed exports.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The samplers of the SDK.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// A variable that is set, and its value.
type Variable = (&'static str, String);

/// Why traces can't be exported as configured.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A variable has a value that this program does not support.
    #[error("{variable}: found {found:?}, expected {expected}")]
    Unsupported {
        /// The variable.
        variable: &'static str,
        /// Its value.
        found: String,
        /// The supported values.
        expected: &'static str,
    },
    /// The endpoint is not a URL of HTTP. It is not shown, since it may contain a password.
    #[error("{setting}: expected a URL such as http://localhost:4318 or https://collector:4318")]
    Endpoint {
        /// The key or the variable.
        setting: &'static str,
    },
    /// The file of the certificate authority can't be read.
    #[error("tls.ca_file: reading {file}: {source}")]
    CaFile {
        /// The file.
        file: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file of the certificate authority contains no certificate.
    #[error("tls.ca_file: {file} contains no certificate in PEM format")]
    Certificate {
        /// The file.
        file: String,
    },
    /// The HTTP client could not be built.
    #[error("building the HTTP client for traces: {0}")]
    Client(#[from] reqwest::Error),
    /// The exporter could not be built.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Where traces are exported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExportTarget {
    endpoint: String,
    timeout: Duration,
}

impl ExportTarget {
    /// Reads the target from the setting `telemetry.otlp_endpoint` and the environment. `None` if
    /// traces are not exported. An empty variable counts as absent.
    pub(super) fn read(
        base: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ExportError> {
        let read = |name: &'static str| {
            let text = variable(name)?.trim().to_owned();
            (!text.is_empty()).then_some((name, text))
        };
        // The variable for traces wins over the general one.
        let either = |names: [&'static str; 2]| names.into_iter().find_map(read);
        let is = |expected: &'static str| move |text: &str| text.eq_ignore_ascii_case(expected);

        let exporter = read("OTEL_TRACES_EXPORTER");
        let is_none = exporter.as_ref().is_some_and(|(_, text)| is("none")(text));
        let is_disabled = read("OTEL_SDK_DISABLED").is_some_and(|(_, text)| is("true")(&text));
        if is_none || is_disabled {
            return Ok(None);
        }
        require(exporter, is("otlp"), "otlp or none")?;
        let (setting, endpoint) = match read("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            Some(found) => found,
            None if base.is_empty() => return Ok(None),
            // The path of traces below a base endpoint
            // (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).
            None => {
                ("telemetry.otlp_endpoint", format!("{}/v1/traces", base.trim_end_matches('/')))
            }
        };
        if !endpoint.parse::<Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
            return Err(ExportError::Endpoint { setting });
        }
        let protocol =
            either(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        require(protocol, is("http/protobuf"), "http/protobuf")?;
        let compression =
            either(["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"]);
        require(compression, is("none"), "none: this program can't compress traces")?;
        check_sdk_variables(read)?;
        let timeout = either(["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"]);
        let timeout = timeout.map_or(Ok(TIMEOUT_DEFAULT), milliseconds)?;
        Ok(Some(Self { endpoint, timeout }))
    }

    /// Builds the provider of spans that exports them. The certificates in `ca_file`, if it is not
    /// empty, are trusted in addition to those of the system.
    ///
    /// Call it outside of an asynchronous runtime, which the blocking client can't be built in.
    pub(super) fn provider(&self, ca_file: &Path) -> Result<SdkTracerProvider, ExportError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(http_client(self.timeout, ca_file)?)
            .with_endpoint(&self.endpoint)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(self.timeout)
            .build()?;
        let exporter = LoggingExporter { exporter, failed: Mutex::default() };
        Ok(SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource())
            .build())
    }
}

/// Checks the variables that the SDK reads, and those that it assumes to have their default.
fn check_sdk_variables(read: impl Fn(&'static str) -> Option<Variable>) -> Result<(), ExportError> {
    // The default of the specification contains baggage, which this program has no use for.
    let is_supported = |one: &str| matches!(one.trim(), "tracecontext" | "baggage");
    let are_supported = |text: &str| text.split(',').all(is_supported);
    require(read("OTEL_PROPAGATORS"), are_supported, "tracecontext")?;
    let is_sampler = |text: &str| SAMPLERS.contains(&text);
    require(read("OTEL_TRACES_SAMPLER"), is_sampler, "a sampler such as parentbased_traceidratio")?;
    let is_ratio = |text: &str| text.parse::<f64>().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio));
    require(read("OTEL_TRACES_SAMPLER_ARG"), is_ratio, "a number from 0 to 1")?;
    for name in
        ["OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_SCHEDULE_DELAY"]
    {
        let is_positive = |text: &str| text.parse::<NonZeroU32>().is_ok();
        require(read(name), is_positive, "a whole number greater than 0")?;
    }
    Ok(())
}

/// Fails if a variable is set to a value that is not supported.
fn require(
    variable: Option<Variable>,
    is_supported: impl Fn(&str) -> bool,
    expected: &'static str,
) -> Result<(), ExportError> {
    match variable {
        Some((variable, found)) if !is_supported(&found) => {
            Err(ExportError::Unsupported { variable, found, expected })
        }
        _ => Ok(()),
    }
}

fn milliseconds((variable, found): Variable) -> Result<Duration, ExportError> {
    let expected = "a number of milliseconds greater than 0";
    match found.parse::<NonZeroU64>() {
        Ok(milliseconds) => Ok(Duration::from_millis(milliseconds.get())),
        Err(_) => Err(ExportError::Unsupported { variable, found, expected }),
    }
}

fn http_client(timeout: Duration, ca_file: &Path) -> Result<Client, ExportError> {
    let mut builder = Client::builder().timeout(timeout);
    if !ca_file.as_os_str().is_empty() {
        builder = builder.tls_certs_merge(certificates(ca_file)?);
    }
    Ok(builder.build()?)
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, ExportError> {
    let pem = std::fs::read(file)
        .map_err(|source| ExportError::CaFile { file: file.display().to_string(), source })?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(ExportError::Certificate { file: file.display().to_string() }),
    }
}

/// What the spans come from. `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` win.
fn resource() -> Resource {
    let resource = Resource::builder_empty()
        .with_service_name("customerio-sync")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty()) {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// Exports spans, and logs failures: one line at first, then at most one per minute.
#[derive(Debug)]
struct LoggingExporter {
    exporter: opentelemetry_otlp::SpanExporter,
    failed: Mutex<FailedExports>,
}

impl SpanExporter for LoggingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(spans) = failed.add(spans, Instant::now()) {
                tracing::warn!(
                    %error,
                    spans,
                    "exporting traces failed; the spans are lost, jobs are not affected"
                );
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The failed exports since the last log line about them.
#[derive(Debug, Default)]
struct FailedExports {
    logged_at: Option<Instant>,
    spans: usize,
}

impl FailedExports {
    /// Adds lost spans. Returns their number since the last log line, if another line is due.
    fn add(&mut self, spans: usize, now: Instant) -> Option<usize> {
        self.spans += spans;
        let elapsed = self.logged_at.map(|at| now.saturating_duration_since(at));
        if elapsed.is_some_and(|elapsed| elapsed < LOG_INTERVAL) {
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.spans))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(base: &str, variables: &[(&str, &str)]) -> Result<Option<(String, Duration)>, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, text)| (*text).to_owned())
        };
        let target = ExportTarget::read(base, variable).map_err(|error| error.to_string())?;
        Ok(target.map(|target| (target.endpoint, target.timeout)))
    }

    fn endpoint(base: &str, variables: &[(&str, &str)]) -> Option<String> {
        read(base, variables).expect("the variables are supported").map(|(endpoint, _)| endpoint)
    }

    const BASE: &str = "http://collector:4318/";

    #[test]
    fn the_path_of_traces_is_appended_to_the_base_endpoint_alone() {
        assert_eq!(endpoint("", &[]), None, "without an endpoint nothing is exported");
        assert_eq!(endpoint(BASE, &[]).as_deref(), Some("http://collector:4318/v1/traces"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/spans");
        assert_eq!(endpoint(BASE, &[own]).as_deref(), Some("https://other/spans"));
        assert_eq!(endpoint("", &[own]).as_deref(), Some("https://other/spans"));
        let empty = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "");
        assert_eq!(endpoint("", &[empty]), None, "an empty variable counts as absent");
    }

    #[test]
    fn the_export_can_be_switched_off() {
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            // Nothing else is checked then.
            assert_eq!(endpoint(BASE, &[off, ("OTEL_PROPAGATORS", "b3")]), None, "{off:?}");
        }
        for on in [("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp")] {
            assert!(endpoint(BASE, &[on]).is_some(), "{on:?}");
        }
    }

    #[test]
    fn the_timeout_for_traces_wins_over_the_general_one() {
        let general = ("OTEL_EXPORTER_OTLP_TIMEOUT", "500");
        let timeout = |variables: &[(&str, &str)]| {
            read(BASE, variables).expect("supported").map(|(_, timeout)| timeout)
        };
        assert_eq!(timeout(&[]), Some(TIMEOUT_DEFAULT));
        assert_eq!(timeout(&[general]), Some(Duration::from_millis(500)));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "70");
        assert_eq!(timeout(&[general, own]), Some(Duration::from_millis(70)));
    }

    #[test]
    fn an_unsupported_value_is_an_error_that_names_variable_and_value() {
        let cases = [
            ("OTEL_TRACES_EXPORTER", "zipkin", "otlp or none"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "none: this program can't compress traces"),
            ("OTEL_PROPAGATORS", "tracecontext,b3", "tracecontext"),
            ("OTEL_TRACES_SAMPLER", "xray", "a sampler such as parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "10%", "a number from 0 to 1"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "a whole number greater than 0"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "a number of milliseconds greater than 0"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "a number of milliseconds greater than 0"),
        ];
        for (variable, found, expected) in cases {
            let error = read(BASE, &[(variable, found)]).expect_err(variable);
            assert_eq!(error, format!("{variable}: found {found:?}, expected {expected}"));
        }
        let supported = [
            ("OTEL_PROPAGATORS", "tracecontext, baggage"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.1"),
        ];
        assert!(read(BASE, &supported).is_ok());
        for base in ["collector:4318", "nowhere", "ftp://collector"] {
            let error = read(base, &[]).expect_err(base);
            assert!(error.starts_with("telemetry.otlp_endpoint: expected a URL"), "{error}");
        }
    }

    #[test]
    fn failed_exports_are_logged_at_most_once_per_minute() {
        let start = Instant::now();
        let mut failed = FailedExports::default();
        assert_eq!(failed.add(512, start), Some(512));
        assert_eq!(failed.add(512, start + LOG_INTERVAL / 2), None);
        assert_eq!(failed.add(8, start + LOG_INTERVAL), Some(520));
    }
}
