//! Spans, and the trace context that messages carry (<https://www.w3.org/TR/trace-context/>).
//!
//! Without an exporter there are no spans: starting one reads a variable and does nothing else, and
//! messages pass on the context that came in.

use std::{borrow::Cow, sync::OnceLock};

use opentelemetry::{
    Context, SpanId, TraceId, Value,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{FutureExt, Link, SpanBuilder, SpanContext, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::{propagation::TraceContextPropagator, trace::SdkTracer};

pub use opentelemetry::{KeyValue, trace::SpanKind};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// Maximum bytes of a `tracestate` that is kept: what fits into a header of a message. The W3C asks
/// for 512 or more.
const TRACESTATE_BYTES_MAX: usize = 2048;

/// Starts the spans. It is set if traces are exported.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Starts spans with `tracer` from now on.
pub(super) fn install(tracer: SdkTracer) {
    // The first one stays: telemetry is initialized once.
    let _ = TRACER.set(tracer);
}

/// The trace and the span of the code that runs. `None` outside of spans.
pub(super) fn current_ids() -> Option<(TraceId, SpanId)> {
    Context::map_current(|context| {
        let span = context.span();
        let current = span.span_context();
        current.is_valid().then(|| (current.trace_id(), current.span_id()))
    })
}

/// The W3C trace context that a message carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The header `traceparent`: the span that the message follows from.
    pub traceparent: Option<String>,
    /// The header `tracestate`: data of tracing systems about the same trace.
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// The context in these headers, unchanged. A `tracestate` has no meaning without a
    /// `traceparent`, and one of more than 2 KiB is dropped: it can't be truncated.
    pub fn new(traceparent: Option<&str>, tracestate: Option<&str>) -> Self {
        let tracestate = tracestate.filter(|text| {
            traceparent.is_some() && !text.is_empty() && text.len() <= TRACESTATE_BYTES_MAX
        });
        Self {
            traceparent: traceparent.map(str::to_owned),
            tracestate: tracestate.map(str::to_owned),
        }
    }

    /// A context whose current span is the one that the message follows from. It has no span if
    /// `traceparent` is missing or malformed.
    fn remote(&self) -> Context {
        TraceContextPropagator::new().extract_with_context(&Context::new(), self)
    }

    fn link(&self) -> Link {
        Link::with_context(self.remote().span().span_context().clone())
    }
}

impl Extractor for TraceContext {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent.as_deref(),
            TRACESTATE => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

impl Injector for TraceContext {
    fn set(&mut self, key: &str, value: String) {
        // The propagator sets an empty `tracestate` if there is none.
        let value = Some(value).filter(|value| !value.is_empty());
        match key {
            TRACEPARENT => self.traceparent = value,
            TRACESTATE => self.tracestate = value,
            _ => {}
        }
    }
}

/// Everything that a span starts with.
#[derive(Debug)]
pub struct SpanStart {
    /// Its name, one of few.
    pub name: Cow<'static, str>,
    /// Its kind.
    pub kind: SpanKind,
    /// Its connection to earlier spans.
    pub parent: SpanParent,
    /// Its attributes. No address, name or body of a person belongs here.
    pub attributes: Vec<KeyValue>,
}

/// The connection of a new span to earlier spans.
#[derive(Debug)]
pub enum SpanParent {
    /// The span that a message follows from is the parent.
    Message(TraceContext),
    /// The span starts a trace, with a link to the span that a message follows from.
    LinkedMessage(TraceContext),
    /// The current span is the parent. If there is none, as `LinkedMessage`.
    Current(TraceContext),
    /// The span starts a trace, with a link to each of these.
    Linked(Vec<SpanLink>),
}

impl SpanParent {
    /// The context that contains the parent, and the links. Links to no span are left out when the
    /// span is built.
    fn resolve(self) -> (Context, Vec<Link>) {
        match self {
            Self::Message(message) => (message.remote(), Vec::new()),
            Self::LinkedMessage(message) => (Context::new(), vec![message.link()]),
            Self::Current(message) => {
                let current = Context::current();
                if current.has_active_span() {
                    (current, Vec::new())
                } else {
                    (Context::new(), vec![message.link()])
                }
            }
            Self::Linked(spans) => {
                let links = spans.into_iter().filter_map(|span| span.0).map(Link::with_context);
                (Context::new(), links.collect())
            }
        }
    }
}

/// The identity of a span, for links to it. Empty without an exporter.
#[derive(Debug, Clone, Default)]
pub struct SpanLink(Option<SpanContext>);

/// A span. It ends when its last clone is dropped. Without an exporter it does nothing.
#[derive(Debug, Clone, Default)]
pub struct TraceSpan(Option<Context>);

impl TraceSpan {
    /// Starts a span. Without an exporter, `describe` is not called.
    pub fn start(describe: impl FnOnce() -> SpanStart) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::default() };
        let SpanStart { name, kind, parent, attributes } = describe();
        let (parent, links) = parent.resolve();
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes(attributes)
            .with_links(links);
        let span = tracer.build_with_context(builder, &parent);
        Self(Some(parent.with_span(span)))
    }

    /// Adds attributes. If the span is not recorded, `attributes` is not called. An attribute may
    /// be added only once.
    pub fn add(&self, attributes: impl FnOnce() -> Vec<KeyValue>) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        if span.is_recording() {
            span.set_attributes(attributes());
        }
    }

    /// Sets the status to an error of this type, one of few. It has no description, since the text
    /// of an error may contain personal data.
    pub fn fail(&self, error_type: impl Into<Value>) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("error.type", error_type));
        span.set_status(Status::error(""));
    }

    /// The identity of this span.
    pub fn link(&self) -> SpanLink {
        SpanLink(self.0.as_ref().map(|context| context.span().span_context().clone()))
    }

    /// The context of a message that follows from this span. Without an exporter, `incoming`.
    pub fn outgoing<'a>(&self, incoming: &'a TraceContext) -> Cow<'a, TraceContext> {
        let Some(context) = &self.0 else { return Cow::Borrowed(incoming) };
        let mut outgoing = TraceContext::default();
        TraceContextPropagator::new().inject_context(context, &mut outgoing);
        if outgoing.traceparent.is_none() {
            return Cow::Borrowed(incoming);
        }
        Cow::Owned(outgoing)
    }

    /// Runs `work` with this span as the current one: spans that start meanwhile are its children,
    /// and log lines carry its ids.
    pub async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INCOMING: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_state_needs_a_parent_and_has_a_maximum_length() {
        let context = TraceContext::new(Some(INCOMING), Some("a=1,b=2"));
        assert_eq!(context.tracestate.as_deref(), Some("a=1,b=2"));
        assert_eq!(TraceContext::new(None, Some("a=1")), TraceContext::default());
        let long = "a".repeat(TRACESTATE_BYTES_MAX + 1);
        assert_eq!(TraceContext::new(Some(INCOMING), Some(&long)).tracestate, None);
    }

    #[test]
    fn a_context_is_read_and_written_unchanged() {
        let context = TraceContext::new(Some(INCOMING), Some("a=1,b=2"));
        let mut written = TraceContext::default();
        TraceContextPropagator::new().inject_context(&context.remote(), &mut written);
        assert_eq!(written, context);
    }

    #[test]
    fn only_the_parent_of_a_message_continues_its_trace() {
        let context = TraceContext::new(Some(INCOMING), None);
        let id = |context: &Context| context.span().span_context().trace_id().to_string();
        let (parent, links) = SpanParent::Message(context.clone()).resolve();
        assert_eq!((id(&parent).as_str(), links.len()), (&INCOMING[3..35], 0));
        for parent in [SpanParent::LinkedMessage(context.clone()), SpanParent::Current(context)] {
            let (parent, links) = parent.resolve();
            assert!(!parent.has_active_span(), "it starts a trace");
            assert_eq!(links[0].span_context.span_id().to_string(), &INCOMING[36..52]);
        }
    }

    #[test]
    fn a_malformed_context_names_no_span() {
        for text in ["", "00", "00-0-0-01", "00-x-y-01", "not a context"] {
            let context = TraceContext::new(Some(text), Some("a=1"));
            assert!(!context.remote().has_active_span(), "{text}");
            assert!(!context.link().span_context.is_valid(), "{text}");
        }
    }

    #[tokio::test]
    async fn without_an_exporter_the_incoming_context_goes_out() {
        let span = TraceSpan::start(|| unreachable!("no span is started"));
        span.add(|| unreachable!("no span is recorded"));
        span.fail("network");
        let incoming = TraceContext::new(Some(INCOMING), Some("a=1"));
        assert_eq!(span.outgoing(&incoming), Cow::Borrowed(&incoming));
        assert_eq!(span.within(async { current_ids() }).await, None);
    }
}
