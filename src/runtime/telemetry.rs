//! Logs to standard error, and traces to an OTLP endpoint if one is set.

use std::{fmt, io::IsTerminal, path::Path, time::Duration};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::{otlp::ExportTarget, trace};

pub use super::otlp::ExportError;

/// Maximum time at exit for exporting the last traces.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of logs and traces.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A filter in the syntax of `RUST_LOG`.
    pub log: String,
    /// The format of log lines.
    pub format: LogFormat,
    /// The OTLP endpoint, without the path of traces. Empty: no traces, unless
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set.
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
    /// Traces can't be exported as configured.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Exports the remaining traces when it is dropped.
#[derive(Debug)]
pub struct TelemetryGuard(Option<SdkTracerProvider>);

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        {
            tracing::warn!(%error, "exporting the last traces failed");
        }
    }
}

/// Starts logging and tracing for the whole process. Call it once, before the asynchronous runtime
/// starts. The certificates in `ca_file`, if it is not empty, are trusted in addition to those of
/// the system.
pub fn init(config: &Config, ca_file: &Path) -> Result<TelemetryGuard, Error> {
    let filter = EnvFilter::builder().parse(&config.log)?;
    let is_json = match config.format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if is_json {
        lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .map_event_format(|format| WithTraceIds { format, is_json })
            .boxed()
    } else {
        // The layer has the same default (https://no-color.org/), but does not pass it on to
        // lines with ids.
        let colors = std::env::var("NO_COLOR").unwrap_or_default().is_empty();
        lines
            .map_event_format(|format| WithTraceIds { format: format.with_ansi(colors), is_json })
            .boxed()
    };
    // lapin logs returned messages, and at this level all frames, with bodies and the password.
    let without_bodies = filter_fn(|metadata| {
        let is_of = |library| metadata.target().starts_with(library);
        let is_traced = *metadata.level() == Level::TRACE;
        !is_of("lapin::returned_messages")
            && !(is_traced && (is_of("lapin") || is_of("tungstenite")))
    });
    tracing_subscriber::registry().with(lines.with_filter(filter.and(without_bodies))).init();
    let target = ExportTarget::read(&config.otlp_endpoint, |name| std::env::var(name).ok())?;
    let Some(target) = target else { return Ok(TelemetryGuard(None)) };
    let provider = target.provider(ca_file)?;
    trace::install(provider.tracer("customerio-sync"));
    Ok(TelemetryGuard(Some(provider)))
}

/// Adds `trace_id` and `span_id` to log lines inside of spans.
struct WithTraceIds<F> {
    format: F,
    is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for WithTraceIds<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some((trace_id, span_id)) = trace::current_ids() else {
            return self.format.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match line.strip_suffix('}').filter(|_| self.is_json) {
            Some(fields) => {
                writeln!(writer, r#"{fields},"trace_id":"{trace_id}","span_id":"{span_id}"}}"#)
            }
            None => writeln!(writer, "{line} trace_id={trace_id} span_id={span_id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::{
        Context,
        trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
    };
    use std::sync::{Arc, Mutex, PoisonError};

    /// Collects log lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Logs one line outside and one inside of a span.
    fn log(is_json: bool) -> Vec<String> {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let layer = if is_json {
            let layer = layer.json().flatten_event(true);
            layer.map_event_format(|format| WithTraceIds { format, is_json }).boxed()
        } else {
            layer
                .with_ansi(false)
                .map_event_format(|format| WithTraceIds {
                    format: format.with_ansi(false),
                    is_json,
                })
                .boxed()
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(job = 7, "outside");
            let (trace_id, span_id) = (TraceId::from(0xab), SpanId::from(0xcd));
            let (flags, state) = (TraceFlags::SAMPLED, TraceState::default());
            let span = SpanContext::new(trace_id, span_id, flags, true, state);
            let _inside = Context::new().with_remote_span_context(span).attach();
            tracing::info!(job = 7, "inside");
        });
        let text = lines.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(text).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn log_lines_inside_of_a_span_carry_its_ids() {
        let lines = log(true);
        let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let (outside, inside) = (json(&lines[0]), json(&lines[1]));
        assert!(outside.get("trace_id").is_none() && outside["message"] == "outside");
        assert_eq!(inside["trace_id"], "000000000000000000000000000000ab");
        assert_eq!(inside["span_id"], "00000000000000cd");
        assert!(inside["message"] == "inside" && inside["job"] == 7, "{inside}");

        let lines = log(false);
        assert!(lines[0].ends_with("outside job=7"), "{lines:?}");
        let ids = "trace_id=000000000000000000000000000000ab span_id=00000000000000cd";
        assert!(lines[1].ends_with(&format!("inside job=7 {ids}")), "{lines:?}");
    }
}
