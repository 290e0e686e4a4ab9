//! Sends batches of jobs to Customer.io and returns an outcome per job.

#![expect(clippy::disallowed_methods, reason = "an edge: calls are timed")]

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use base64::Engine;
use chrono::{DateTime, Utc};
use futures_util::future::{BoxFuture, join_all};
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
};
use secrecy::ExposeSecret;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use uuid::Uuid;

use super::{
    BreakerConfig, Config, Identifier, Region,
    breaker::{BreakerStatus, CallResult, CircuitBreaker, Permit},
    labels::{CallRateOf, CallStatus},
    operation::{self, Prepared},
    people::{PeopleInFlight, Reservation},
    rate_limiter::RateLimiter,
    response::{self, BatchResponse, RawResponse},
};
use crate::{
    job::{Attempt, ClaimedJob, Failure, FailureCause, Outcome},
    runtime::{
        metrics::Metrics,
        text_enum::text_enum,
        tls,
        trace::{KeyValue, SpanKind, SpanLink, SpanParent, SpanStart, TraceSpan},
    },
};

/// Path of the batch endpoint.
const BATCH_PATH: &str = "/api/v2/batch";
/// Maximum bytes per call. The documentation says 500 kB without saying whether a kB is 1000 or
/// 1024 bytes; this leaves room.
const CALL_BYTES_MAX: usize = 475_000;
/// Maximum bytes that are read of a response.
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
/// An idle connection is closed after this time, before the far side is likely to close it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// An error in the settings of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL is malformed.
    #[error("customerio.track_url is malformed: {0}")]
    Url(String),
    /// The credentials contain bytes that a header can't carry.
    #[error("the Customer.io credentials can't be sent in a header; expected printable characters")]
    Credentials,
    /// A certificate file can't be read.
    #[error(transparent)]
    Certificate(#[from] tls::UnreadableFile),
    /// The HTTP client could not be built.
    #[error("building the HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

text_enum! {
    /// Whether jobs are sent to Customer.io.
    Mode {
        /// Jobs are sent.
        Live = "live",
        /// No job is sent; every job counts as accepted, and is marked.
        Mock = "mock",
    }
}

/// The result of pushing one job.
#[derive(Debug, Clone, PartialEq)]
pub enum PushResult {
    /// An attempt was made.
    Attempted {
        /// The person identifier that was used.
        contact_id: Option<String>,
        /// The attempt and its outcome.
        attempt: Attempt,
    },
    /// Another message owned the job when its call was due. The job was not sent.
    ClaimLost,
    /// The job was not sent: the breaker had opened when the call was due, a credential is missing,
    /// or another job of the person goes first.
    NotSent,
}

/// A function that returns those of the given jobs that are still claimed. It runs when a call is
/// due, which may be long after the jobs were claimed.
pub type RetainClaimed<'a> = dyn Fn(Vec<Uuid>) -> BoxFuture<'a, HashSet<Uuid>> + Sync + 'a;

/// A job that was pushed.
#[derive(Debug, Clone, PartialEq)]
pub struct PushedJob {
    /// The job.
    pub job_id: Uuid,
    /// Its result.
    pub result: PushResult,
}

/// A job, prepared to be pushed: it can be sent, or its attempt has ended without a call.
#[derive(Debug)]
pub struct PreparedJob(Result<SendableJob, PushedJob>);

/// A job that can be sent.
#[derive(Debug)]
struct SendableJob {
    job_id: Uuid,
    occurred_at: DateTime<Utc>,
    /// The span of its message, to which the span of its call is linked.
    span: SpanLink,
    prepared: Prepared,
}

/// A job that can be sent, and whose person has no other call in flight.
type ReservedJob<'a> = (SendableJob, Reservation<'a>);

/// Where the results of each call are sent when it has ended.
type Results = mpsc::Sender<Vec<PushedJob>>;

/// Customer.io's answer about the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// Both credentials or one of them are missing, so no request was made.
    Mock,
    /// The credentials are refused.
    Refused,
    /// The credentials are accepted.
    Accepted {
        /// Where the account's data is kept, `us` or `eu`.
        region: String,
    },
    /// There was no answer, for this reason.
    NoAnswer(String),
    /// The answer names no region, so it is not one of the Track API.
    Other {
        /// HTTP status.
        status: u16,
    },
}

/// Whether new credentials replace those in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// They are in use.
    InUse,
    /// Customer.io refuses them.
    Refused,
    /// There was no usable answer, for this reason.
    NoAnswer(String),
}

/// A client of the Track API.
#[derive(Debug)]
pub struct CustomerIo {
    /// Replaced when a credential or a certificate is renewed.
    transport: RwLock<Arc<Transport>>,
    identifier: Identifier,
    /// The configured region.
    region: Region,
    max_operations: usize,
    people: PeopleInFlight,
    rate_limiter: RateLimiter,
    breaker: CircuitBreaker,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Transport {
    /// Sends nothing; every job counts as accepted.
    Mock,
    /// Sends nothing, and no job counts as accepted: one of the two credentials is missing.
    HalfConfigured {
        /// The environment variable of the missing one.
        missing: &'static str,
    },
    Http(Box<Http>),
}

/// The address and the credentials of the Track API.
#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    batch_url: Url,
    region_url: Url,
    authorization: HeaderValue,
}

/// The result of one batch call.
struct BatchCall {
    response: BatchResponse,
    http_status: Option<u16>,
}

impl CustomerIo {
    /// Builds a client. Without credentials it runs in mock mode: it makes no calls and warns once.
    pub fn new(
        config: &Config,
        tls: &tls::Config,
        breaker: BreakerConfig,
        metrics: Arc<Metrics>,
    ) -> Result<Self, Error> {
        metrics
            .call_rate_limit
            .with_label_values(&[CallRateOf::All.as_str()])
            .set(config.requests_per_second.get().into());
        let client = Self {
            transport: RwLock::new(Arc::new(Transport::new(config, tls)?)),
            identifier: config.identifier,
            region: config.region,
            max_operations: config.max_operations,
            people: PeopleInFlight::default(),
            rate_limiter: RateLimiter::new(),
            breaker: CircuitBreaker::new(breaker),
            metrics,
        };
        client.metrics.mock_mode.set((client.mode() == Mode::Mock).into());
        Ok(client)
    }

    /// Whether jobs are sent. A client with one of the two credentials is live, and sends nothing
    /// until it has the other ([`Self::missing_credential`]).
    pub fn mode(&self) -> Mode {
        match *self.transport() {
            Transport::Mock => Mode::Mock,
            Transport::HalfConfigured { .. } | Transport::Http(_) => Mode::Live,
        }
    }

    /// The environment variable of the missing credential, if exactly one of the two is set and
    /// `customerio.allow_mock` is false. Then no job is sent, and none counts as accepted.
    pub fn missing_credential(&self) -> Option<&'static str> {
        match *self.transport() {
            Transport::HalfConfigured { missing } => Some(missing),
            Transport::Mock | Transport::Http(_) => None,
        }
    }

    /// Waits for a permit to call: until the breaker is closed, or until the next probe is due.
    /// While a credential is missing, it waits forever; the caller limits the wait.
    pub async fn permit(&self) -> Permit<'_> {
        if self.missing_credential().is_some() {
            std::future::pending::<()>().await;
        }
        loop {
            let (permit, region_request_first) = self.breaker.permit().await;
            // No job is risked to learn that nothing has changed: that would spend a retry, or fail
            // the job.
            if !region_request_first || self.is_answering(&permit).await {
                return permit;
            }
        }
    }

    /// Returns a permit if the breaker is closed and no credential is missing.
    pub fn try_permit(&self) -> Option<Permit<'_>> {
        if self.missing_credential().is_some() {
            return None;
        }
        self.breaker.try_permit()
    }

    /// The limit of calls per second. No call is made until a rate is granted.
    pub fn rate_limiter(&self) -> &RateLimiter {
        &self.rate_limiter
    }

    /// Pauses calls for `wait`, because Customer.io asked another replica for it.
    pub fn pause(&self, wait: Duration) {
        self.breaker.pause(wait);
    }

    /// Reports the end of each pause that Customer.io asks this replica for.
    pub fn watch_paused_until(&self) -> watch::Receiver<Option<Instant>> {
        self.breaker.watch_paused_until()
    }

    /// The state of the circuit breaker.
    pub fn breaker(&self) -> BreakerStatus {
        self.breaker.status()
    }

    /// Reports changes of the circuit breaker.
    pub fn watch_breaker(&self) -> watch::Receiver<BreakerStatus> {
        self.breaker.watch()
    }

    /// Closes the circuit breaker of this replica, and ends a pause.
    pub fn close_breaker(&self) {
        self.breaker.close();
    }

    /// Whether no further job is risked until the settings change or an operator closes the
    /// breaker.
    pub fn is_halted(&self) -> bool {
        self.breaker.is_halted()
    }

    /// Time until the next probe. `None` while the breaker is closed or half-open, and if no job is
    /// risked.
    pub fn probe_in(&self) -> Option<Duration> {
        self.breaker.probe_in()
    }

    /// Asks Customer.io for the account's region. The answer also shows whether it accepts the
    /// credentials.
    pub async fn account(&self) -> Account {
        self.transport().account().await
    }

    /// Uses the credentials of `config`, and the present certificates, for all further calls,
    /// unless Customer.io refuses them or does not answer. Then the ones in use stay.
    pub async fn replace(&self, config: &Config, tls: &tls::Config) -> Result<Replacement, Error> {
        let transport = Transport::new(config, tls)?;
        match transport.account().await {
            Account::Refused => return Ok(Replacement::Refused),
            Account::NoAnswer(reason) => return Ok(Replacement::NoAnswer(reason)),
            Account::Other { status } if status >= 500 || matches!(status, 408 | 429) => {
                return Ok(Replacement::NoAnswer(format!("Customer.io answers with {status}")));
            }
            // A proxy may forward the batch endpoint alone.
            Account::Other { .. } | Account::Accepted { .. } | Account::Mock => {}
        }
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(transport);
        self.breaker.probe_now();
        Ok(Replacement::InUse)
    }

    fn transport(&self) -> Arc<Transport> {
        self.transport.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether Customer.io answers and accepts the credentials.
    ///
    /// Asks for the account's region, which changes nothing. An unclear answer leaves the decision
    /// to a job's call: a proxy may forward the batch endpoint alone.
    async fn is_answering(&self, permit: &Permit<'_>) -> bool {
        let transport = self.transport();
        let Transport::Http(http) = &*transport else { return true };
        self.wait_for_rate().await;
        let result = match self.exchange(http.region_request()).await {
            Ok(HttpResponse { status: 401 | 403, .. }) => CallResult::Refused { failed_job: false },
            Ok(HttpResponse { status: 408 | 429 | 500..=599, .. }) | Err(_) => CallResult::Failed,
            Ok(response) => match response.region() {
                Some(region) if !self.region.is(&region) => {
                    tracing::error!(
                        region,
                        "the account is in another region than CUSTOMERIO_REGION says; no job is \
                            sent until that is corrected"
                    );
                    CallResult::WrongRegion
                }
                _ => CallResult::Answered,
            },
        };
        if result != CallResult::Answered {
            permit.record(result);
        }
        result == CallResult::Answered
    }

    /// Waits until the rate limiter allows a call.
    async fn wait_for_rate(&self) {
        let started = Instant::now();
        self.rate_limiter.acquire().await;
        self.metrics.call_rate_wait.observe(started.elapsed().as_secs_f64());
    }

    /// Sends a request. A `Retry-After` in the response pauses all calls.
    async fn exchange(&self, request: reqwest::RequestBuilder) -> reqwest::Result<HttpResponse> {
        let response = exchange(request).await?;
        if let Some(wait) = response.retry_after {
            self.breaker.retry_after(wait);
        }
        Ok(response)
    }

    /// Prepares a job to be pushed. `span` is the span of its message.
    pub fn prepare(&self, claimed: &ClaimedJob, span: SpanLink) -> PreparedJob {
        let (job_id, occurred_at) = (claimed.job.id, claimed.job.occurred_at);
        PreparedJob(match operation::prepare(claimed, self.identifier) {
            Ok(prepared) => Ok(SendableJob { job_id, occurred_at, span, prepared }),
            Err(outcome) => {
                let contact = operation::identify(&claimed.signup, self.identifier);
                let contact = contact.map(|(_, contact_id)| contact_id.to_owned());
                Err(PushedJob { job_id, result: attempt_without_call(contact, outcome) })
            }
        })
    }

    /// Sends the jobs, in as few calls as the limits allow. Of several jobs of one person, the
    /// oldest is sent, and the others are not. `results` gets one result per job, those of a call
    /// when it has ended.
    pub async fn push(
        &self,
        jobs: Vec<PreparedJob>,
        permit: &Permit<'_>,
        retain_claimed: &RetainClaimed<'_>,
        results: Results,
    ) {
        let (mut sendable, mut ended) = (Vec::with_capacity(jobs.len()), Vec::new());
        for PreparedJob(job) in jobs {
            match job {
                Ok(job) => sendable.push(job),
                Err(pushed) => ended.push(pushed),
            }
        }
        // The older of two jobs of one person goes first.
        sendable.sort_by_key(|job| job.occurred_at);
        let keys = |job: &SendableJob| job.prepared.person;
        let (ready, waiting) = self.people.reserve(sendable, keys).await;
        ended.extend(waiting.iter().map(|job| job.ended(PushResult::NotSent)));
        send_results(&results, ended).await;
        let calls = self.split(ready).into_iter().map(async |call| {
            let (jobs, _reservations): (Vec<_>, Vec<_>) = call.into_iter().unzip();
            self.send(jobs.iter().collect(), permit, retain_claimed, &results).await;
        });
        join_all(calls).await;
    }

    /// Divides the jobs into calls within the limits of size and number.
    fn split<'a>(&self, jobs: Vec<ReservedJob<'a>>) -> Vec<Vec<ReservedJob<'a>>> {
        let mut calls = Vec::new();
        let mut call: Vec<ReservedJob<'_>> = Vec::new();
        let (mut operations, mut bytes) = (0, 0);
        for job in jobs {
            let Prepared { operations: more, json, .. } = &job.0.prepared;
            let (more, size) = (*more, json.len() + 1);
            if operations + more > self.max_operations || bytes + size > CALL_BYTES_MAX {
                calls.push(std::mem::take(&mut call));
                (operations, bytes) = (0, 0);
            }
            operations += more;
            bytes += size;
            call.push(job);
        }
        calls.push(call);
        calls.retain(|call| !call.is_empty());
        calls
    }

    /// Makes one call, when the rate limiter allows it, for those of the jobs that are still
    /// claimed, unless the breaker has opened meanwhile. A call that is refused as a whole is
    /// halved until the offending job is alone. In mock mode, it makes no call.
    fn send<'a>(
        &'a self,
        jobs: Vec<&'a SendableJob>,
        permit: &'a Permit<'_>,
        retain_claimed: &'a RetainClaimed<'_>,
        results: &'a Results,
    ) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            self.wait_for_rate().await;
            let claimed = retain_claimed(jobs.iter().map(|job| job.job_id).collect()).await;
            let (mut jobs, lost): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| claimed.contains(&job.job_id));
            let lost = lost.into_iter().map(|job| job.ended(PushResult::ClaimLost));
            send_results(results, lost.collect()).await;
            let transport = self.transport();
            let http = match &*transport {
                Transport::Http(http) if permit.is_valid() && !jobs.is_empty() => http,
                Transport::Mock if permit.is_valid() && !jobs.is_empty() => {
                    permit.record(CallResult::Answered);
                    let accepted = jobs.into_iter().map(SendableJob::accepted_in_mock_mode);
                    return send_results(results, accepted.collect()).await;
                }
                _ => {
                    let not_sent = jobs.into_iter().map(|job| job.ended(PushResult::NotSent));
                    return send_results(results, not_sent.collect()).await;
                }
            };
            let (started_at, started) = (Utc::now(), Instant::now());
            let BatchCall { response, http_status } = self.call(http, &jobs).await;
            let duration = started.elapsed();
            let result = call_result(http_status, &response, jobs.len());
            permit.record(result);
            self.count_call(http_status, duration);
            if result == (CallResult::Refused { failed_job: false }) {
                // They wait, and no attempt is spent.
                let not_sent = jobs.into_iter().map(|job| job.ended(PushResult::NotSent));
                return send_results(results, not_sent.collect()).await;
            }
            let outcomes = match response {
                BatchResponse::PerJob(outcomes) => outcomes,
                BatchResponse::RejectedWhole(failure) if jobs.len() == 1 => {
                    vec![Outcome::Refused(failure)]
                }
                BatchResponse::RejectedWhole(_) => {
                    let right = jobs.split_off(jobs.len() / 2);
                    self.send(jobs, permit, retain_claimed, results).await;
                    return self.send(right, permit, retain_claimed, results).await;
                }
            };
            let attempted = |(job, outcome): (&SendableJob, _)| {
                job.attempted(Attempt {
                    started_at,
                    duration,
                    http_status,
                    outcome,
                    mock: false,
                    warning: job.prepared.warning,
                })
            };
            send_results(results, jobs.into_iter().zip(outcomes).map(attempted).collect()).await;
        })
    }

    fn count_call(&self, status: Option<u16>, duration: Duration) {
        self.metrics.call_duration.observe(duration.as_secs_f64());
        self.metrics.calls.with_label_values(&[CallStatus::of(status).as_str()]).inc();
    }

    async fn call(&self, http: &Http, jobs: &[&SendableJob]) -> BatchCall {
        let request = http
            .client
            .post(http.batch_url.clone())
            .header(AUTHORIZATION, &http.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(batch_body(jobs));
        let span = http.batch_span(jobs);
        let operations: Vec<_> = jobs.iter().map(|job| job.prepared.operations).collect();
        match self.exchange(request).await {
            Ok(received) => {
                record_status(&span, received.status);
                BatchCall {
                    response: response::read(received.raw(), &operations),
                    http_status: Some(received.status),
                }
            }
            Err(error) => {
                span.fail(error_type(&error));
                let failure = Failure::new(FailureCause::NoResponse, describe(&error));
                let outcome = Outcome::Retryable { failure, retry_after: None };
                let response = BatchResponse::PerJob(vec![outcome; jobs.len()]);
                BatchCall { response, http_status: None }
            }
        }
    }
}

impl Http {
    fn region_request(&self) -> reqwest::RequestBuilder {
        self.client.get(self.region_url.clone()).header(AUTHORIZATION, &self.authorization)
    }

    /// Starts the span of a batch call, after OpenTelemetry's conventions for HTTP clients
    /// (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>).
    ///
    /// A call serves jobs of many traces, so its span is linked to those of their messages and
    /// starts a trace. The request does not carry its context: Customer.io is another company,
    /// whose systems do not continue the trace.
    fn batch_span(&self, jobs: &[&SendableJob]) -> TraceSpan {
        TraceSpan::start(|| {
            let url = &self.batch_url;
            let host = url.host_str().unwrap_or_default().to_owned();
            let port = url.port_or_known_default().unwrap_or_default();
            SpanStart {
                name: format!("POST {BATCH_PATH}").into(),
                kind: SpanKind::Client,
                parent: SpanParent::Linked(jobs.iter().map(|job| job.span.clone()).collect()),
                attributes: vec![
                    KeyValue::new("http.request.method", "POST"),
                    KeyValue::new("url.template", BATCH_PATH),
                    KeyValue::new("url.full", without_credentials(url)),
                    KeyValue::new("server.address", host),
                    KeyValue::new("server.port", i64::from(port)),
                    KeyValue::new("messaging.batch.message_count", jobs.len() as i64),
                ],
            }
        })
    }
}

fn without_credentials(url: &Url) -> String {
    let mut url = url.clone();
    // They fail for URLs without a host, which have no credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// Records the status of a response. As the conventions require, 4xx and 5xx are errors.
fn record_status(span: &TraceSpan, status: u16) {
    span.add(|| vec![KeyValue::new("http.response.status_code", i64::from(status))]);
    if status >= 400 {
        span.fail(status.to_string());
    }
}

impl Transport {
    fn new(config: &Config, tls: &tls::Config) -> Result<Self, Error> {
        let (site_id, api_key) = (config.site_id.trim(), config.api_key.expose_secret().trim());
        let missing = match (site_id.is_empty(), api_key.is_empty()) {
            (false, false) => return Self::http(config, tls, basic_auth(site_id, api_key)?),
            (true, false) if !config.allow_mock => "CUSTOMERIO_SITE_ID",
            (false, true) if !config.allow_mock => "CUSTOMERIO_API_KEY",
            _ => {
                tracing::warn!(
                    "mock mode: CUSTOMERIO_SITE_ID or CUSTOMERIO_API_KEY is missing, so no calls \
                        are made, and every job counts as accepted and is marked"
                );
                return Ok(Self::Mock);
            }
        };
        tracing::warn!(
            missing,
            "{missing} is not set, so no job is sent and nothing is consumed; set it, or set \
                customerio.allow_mock = true to mark all jobs as accepted without a call"
        );
        Ok(Self::HalfConfigured { missing })
    }

    async fn account(&self) -> Account {
        let Self::Http(http) = self else { return Account::Mock };
        match exchange(http.region_request()).await {
            Err(error) => Account::NoAnswer(describe(&error)),
            Ok(HttpResponse { status: 401 | 403, .. }) => Account::Refused,
            Ok(response) => match response.region() {
                Some(region) => Account::Accepted { region },
                None => Account::Other { status: response.status },
            },
        }
    }

    fn http(config: &Config, tls: &tls::Config, authorization: HeaderValue) -> Result<Self, Error> {
        // Tests build the client without the command line.
        tls::install_crypto_provider();
        let authorities = tls.authorities()?.unwrap_or_default();
        let authorities = reqwest::Certificate::from_pem_bundle(&authorities)?;
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .connect_timeout(config.connect_timeout)
            .tls_certs_merge(authorities)
            .pool_idle_timeout(IDLE_TIMEOUT)
            // A redirect means the wrong region. Following it would send the data through that one.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("customerio-sync/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let base = if config.track_url.is_empty() {
            config.region.track_url()
        } else {
            config.track_url.as_str()
        };
        let url = |path: &str| {
            parse_url(&format!("{}{path}", base.trim_end_matches('/'))).map_err(Error::Url)
        };
        Ok(Self::Http(Box::new(Http {
            client,
            batch_url: url(BATCH_PATH)?,
            region_url: url("/api/v1/accounts/region")?,
            authorization,
        })))
    }
}

/// Describes what is wrong with `track_url`. The text contains no part of it: it may have a
/// password.
pub fn check_url(config: &Config) -> Result<(), String> {
    if config.track_url.is_empty() { Ok(()) } else { parse_url(&config.track_url).map(drop) }
}

/// The URL without user and password, for people.
pub(super) fn display_url(url: &str) -> String {
    let url = parse_url(url).map(|url| without_credentials(&url)).unwrap_or_default();
    url.trim_end_matches('/').to_owned()
}

fn parse_url(url: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected one such as https://track.customer.io";
    let url: Url =
        url.parse().map_err(|error| format!("it can't be parsed ({error}); {EXPECTED}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("it is not an http or https URL; {EXPECTED}"));
    }
    Ok(url)
}

fn basic_auth(site_id: &str, api_key: &str) -> Result<HeaderValue, Error> {
    let credentials = format!("{site_id}:{api_key}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
    let mut header =
        HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| Error::Credentials)?;
    header.set_sensitive(true);
    Ok(header)
}

fn batch_body(jobs: &[&SendableJob]) -> String {
    let operations: Vec<_> = jobs.iter().map(|job| job.prepared.json.as_str()).collect();
    format!("{{\"batch\":[{}]}}", operations.join(","))
}

/// An attempt that ended before a call could be made.
fn attempt_without_call(contact_id: Option<String>, outcome: Outcome) -> PushResult {
    let attempt = Attempt {
        started_at: Utc::now(),
        duration: Duration::ZERO,
        http_status: None,
        outcome,
        mock: false,
        warning: None,
    };
    PushResult::Attempted { contact_id, attempt }
}

/// Sends results, if there are any.
async fn send_results(results: &Results, ended: Vec<PushedJob>) {
    if !ended.is_empty() {
        // The receiver ends only with the batch.
        let _ = results.send(ended).await;
    }
}

impl SendableJob {
    fn ended(&self, result: PushResult) -> PushedJob {
        PushedJob { job_id: self.job_id, result }
    }

    fn attempted(&self, attempt: Attempt) -> PushedJob {
        let contact_id = Some(self.prepared.contact_id.clone());
        self.ended(PushResult::Attempted { contact_id, attempt })
    }

    fn accepted_in_mock_mode(&self) -> PushedJob {
        self.attempted(Attempt {
            started_at: Utc::now(),
            duration: Duration::ZERO,
            http_status: None,
            outcome: Outcome::Accepted,
            mock: true,
            warning: self.prepared.warning,
        })
    }
}

/// A response, read to its end.
struct HttpResponse {
    status: u16,
    retry_after: Option<Duration>,
    location: Option<String>,
    body: Vec<u8>,
}

impl HttpResponse {
    /// The region that it names
    /// (<https://docs.customer.io/integrations/api/track/#operation/getRegion>).
    fn region(&self) -> Option<String> {
        #[derive(serde::Deserialize)]
        struct RegionResponse {
            region: String,
        }
        let parsed = serde_json::from_slice(&self.body);
        parsed.ok().map(|RegionResponse { region }| region)
    }

    fn raw(&self) -> RawResponse<'_> {
        RawResponse {
            status: self.status,
            retry_after: self.retry_after,
            location: self.location.as_deref(),
            body: &self.body,
        }
    }
}

async fn exchange(request: reqwest::RequestBuilder) -> reqwest::Result<HttpResponse> {
    let mut response = request.send().await?;
    let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let retry_after =
        header(RETRY_AFTER).and_then(|value| response::retry_after(&value, SystemTime::now()));
    let location = header(LOCATION);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > RESPONSE_BYTES_MAX {
            break;
        }
    }
    Ok(HttpResponse { status: response.status().as_u16(), retry_after, location, body })
}

/// The kind of error of a call without a response.
fn error_type(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "not_connected"
    } else {
        "connection_lost"
    }
}

/// The error with its causes, without the URL.
fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "the call timed out"
    } else if error.is_connect() {
        "no connection to Customer.io"
    } else {
        "the connection was lost during the call"
    };
    let mut text = what.to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The result of a call, as far as it matters to the breaker.
fn call_result(status: Option<u16>, response: &BatchResponse, jobs: usize) -> CallResult {
    let is_retryable = |outcome: &Outcome| matches!(outcome, Outcome::Retryable { .. });
    match (status, response) {
        (Some(401 | 403 | 404 | 405 | 300..=399), _) => {
            CallResult::Refused { failed_job: jobs == 1 }
        }
        (Some(408 | 429 | 500..=599), _) => CallResult::Failed,
        (_, BatchResponse::PerJob(outcomes))
            if !outcomes.is_empty() && outcomes.iter().all(is_retryable) =>
        {
            CallResult::Failed
        }
        _ => CallResult::Answered,
    }
}
