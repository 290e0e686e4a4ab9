//! Continuing a trace across messages: the `traceparent` header
//! (<https://www.w3.org/TR/trace-context/>).
//!
//! With no exporter set, a span has no trace of its own and the header that came in is passed on as
//! it is.

use std::collections::HashMap;

use opentelemetry::{propagation::TextMapPropagator, trace::TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// Makes `span` a child of the span that `traceparent` names, if it names one.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    let Some(header) = traceparent else { return };
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), header.to_owned())]);
    // It fails only where no exporter is set, and then there is no trace to continue.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
}

/// The `traceparent` for messages that follow from `span`, or `incoming` where the span is not
/// recorded.
pub fn traceparent(span: &Span, incoming: Option<&str>) -> Option<String> {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return incoming.map(str::to_owned);
    }
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut carrier);
    carrier.remove(TRACEPARENT)
}
