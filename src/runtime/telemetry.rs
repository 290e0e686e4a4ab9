//! Logs to standard error, and traces to an OTLP endpoint if one is set.

use std::io::IsTerminal;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt,
};

use serde::Deserialize;

/// Settings of logs and traces.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A filter in the syntax of `RUST_LOG`.
    pub log: String,
    /// The format of log lines.
    pub format: LogFormat,
    /// The OTLP endpoint. Empty: no traces.
    pub otlp_endpoint: String,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, otherwise JSON.
    #[serde(rename = "")]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object per line.
    Json,
}

/// An error in the settings of logs and traces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is malformed.
    #[error(
        "telemetry.log: {0}; expected a filter such as \"info\" or \"customerio_sync=debug,info\""
    )]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter could not be built.
    #[error("telemetry.otlp_endpoint: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Exports the remaining traces when it is dropped.
#[derive(Debug)]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            eprintln!("customerio-sync: exporting the last traces: {error}");
        }
    }
}

/// The target of spans that are exported and not logged.
const TRACES: &str = "otel";

/// Starts logging and tracing for the whole process. Call it once.
pub fn init(config: &Config) -> Result<TelemetryGuard, Error> {
    let filter = EnvFilter::builder().parse(&config.log)?.add_directive("otel=off".parse()?);
    let is_json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if is_json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    let provider = exporter(&config.otlp_endpoint)?;
    let traces = provider.as_ref().map(|provider| {
        let tracer = provider.tracer("customerio-sync");
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_filter(Targets::new().with_target(TRACES, tracing::Level::INFO))
    });
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).init();
    Ok(TelemetryGuard(provider))
}

fn exporter(endpoint: &str) -> Result<Option<SdkTracerProvider>, Error> {
    if endpoint.is_empty() {
        return Ok(None);
    }
    // The path of traces below a base endpoint
    // (https://opentelemetry.io/docs/specs/otel/protocol/exporter/).
    let endpoint = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let exporter = SpanExporter::builder().with_http().with_endpoint(endpoint).build()?;
    let resource = Resource::builder().with_service_name("customerio-sync").build();
    Ok(Some(
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build(),
    ))
}
