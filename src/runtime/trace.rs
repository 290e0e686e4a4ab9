//! Trace context across messages: the `traceparent` header
//! (<https://www.w3.org/TR/trace-context/>).
//!
//! Without an exporter, a span has no trace, and the incoming header is passed on unchanged.

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
    // It fails only without an exporter, and then there is no trace to continue.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&carrier));
}

/// The `traceparent` for messages that follow from `span`, or `incoming` if the span is not
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
