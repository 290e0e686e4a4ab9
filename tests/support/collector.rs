//! A collector of traces: it receives OTLP over HTTP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router, body::Bytes, extract::State, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use tokio::task::JoinHandle;

type Attributes = BTreeMap<String, String>;

/// A running collector.
pub(crate) struct Collector {
    pub(crate) url: String,
    bodies: Bodies,
    task: JoinHandle<()>,
}

/// The bodies of the requests.
#[derive(Clone, Default)]
struct Bodies(Arc<Mutex<Vec<Bytes>>>);

/// A span that was received.
#[derive(Debug)]
pub(crate) struct CollectedSpan {
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) trace_state: String,
    /// The span id of its parent.
    pub(crate) parent: Option<String>,
    /// The trace ids and span ids of its links.
    pub(crate) links: Vec<(String, String)>,
    pub(crate) attributes: Attributes,
    pub(crate) resource: Attributes,
    pub(crate) status: StatusCode,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let bodies = Bodies::default();
        let router = Router::new().route("/v1/traces", post(receive)).with_state(bodies.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("the collector serves");
        });
        Self { url, bodies, task }
    }

    fn bodies(&self) -> Vec<Bytes> {
        self.bodies.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `text` is anywhere in what was received.
    pub(crate) fn has_received(&self, text: &str) -> bool {
        let is_in = |body: &Bytes| body.windows(text.len()).any(|part| part == text.as_bytes());
        self.bodies().iter().any(is_in)
    }

    /// The spans that were received.
    pub(crate) fn spans(&self) -> Vec<CollectedSpan> {
        let mut spans = Vec::new();
        for body in self.bodies() {
            let request = ExportTraceServiceRequest::decode(body).expect("an export of spans");
            for of_resource in request.resource_spans {
                let resource = of_resource.resource.expect("a resource").attributes;
                let found = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(found.map(|span| CollectedSpan::new(span, &resource)));
            }
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receive(State(bodies): State<Bodies>, body: Bytes) -> impl IntoResponse {
    bodies.0.lock().unwrap_or_else(PoisonError::into_inner).push(body);
    let response = ExportTraceServiceResponse::default().encode_to_vec();
    ([(CONTENT_TYPE, "application/x-protobuf")], response)
}

impl CollectedSpan {
    fn new(span: Span, resource: &[KeyValue]) -> Self {
        let link = |(trace_id, span_id): (&[u8], &[u8])| (hex(trace_id), hex(span_id));
        let links = span.links.iter().map(|one| (one.trace_id.as_slice(), one.span_id.as_slice()));
        Self {
            kind: span.kind(),
            trace_id: hex(&span.trace_id),
            span_id: hex(&span.span_id),
            parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
            links: links.map(link).collect(),
            attributes: attributes(&span.attributes),
            resource: attributes(resource),
            status: span.status.as_ref().map_or(StatusCode::Unset, |status| status.code()),
            name: span.name,
            trace_state: span.trace_state,
        }
    }

    /// The ids by which other spans and log lines name it.
    pub(crate) fn ids(&self) -> (String, String) {
        (self.trace_id.clone(), self.span_id.clone())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(attributes: &[KeyValue]) -> Attributes {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    };
    let mut texts = Attributes::new();
    for attribute in attributes {
        let earlier = texts.insert(attribute.key.clone(), text(attribute).expect("a value"));
        assert_eq!(earlier, None, "{} is set twice", attribute.key);
    }
    texts
}
