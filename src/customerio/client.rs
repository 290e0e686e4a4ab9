//! Carries batches to Customer.io and brings answers back.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use base64::Engine;
use chrono::Utc;
use futures_util::future::{BoxFuture, join_all};
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::{
    Config, GateConfig, Identifier,
    breaker::{Called, Gate, GateView, Pass},
    operation::{self, Prepared},
    rate_limiter::Budget,
    response::{self, Answer, Meaning},
};
use crate::{
    job::{Attempt, ErrorType, Failure, Outcome, Work},
    runtime::metrics::Metrics,
};

/// Bytes of a call at most. The documentation says 500 kB and not which kind; this leaves room.
const MAX_CALL_BYTES: usize = 475_000;
/// An answer is read no further than this.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// A kept connection is closed before the far side is likely to.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What can be wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The base URL can't be read.
    #[error(
        "customerio.track_url {url:?} is not a URL ({why}); expected one such as \
            https://track.customer.io"
    )]
    Url {
        /// The setting.
        url: String,
        /// Why.
        why: String,
    },
    /// The credentials hold bytes that no header can.
    #[error("the Customer.io credentials can't be sent in a header; expected printable characters")]
    Credentials,
    /// The HTTP client could not be made.
    #[error("making the HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// What became of a job that was to be called for.
#[derive(Debug, Clone, PartialEq)]
pub enum Pushed {
    /// It was tried.
    Tried {
        /// The person identifier that was used.
        contact_id: Option<String>,
        /// How it went.
        attempt: Attempt,
    },
    /// Its holder had lost it when its turn came. It was not sent.
    Lost,
    /// The gate had shut when its turn came. It was not sent.
    Held,
}

/// Whoever has jobs called for.
pub trait Holder: Sync {
    /// Which of `jobs` may be called for still. Asked when a call's turn has come, which may be
    /// long after it was wanted.
    fn still_held(&self, jobs: Vec<Uuid>) -> BoxFuture<'_, HashSet<Uuid>>;
}

/// A job that is ready to be sent.
#[derive(Debug)]
struct Ready {
    /// Its place among the jobs that were given.
    index: usize,
    job: Uuid,
    prepared: Prepared,
}

/// What Customer.io says of the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// There are none, so nobody was asked.
    Mock,
    /// It does not accept them.
    Refused,
    /// It accepts them.
    In {
        /// Where the account's data is kept, `us` or `eu`.
        region: String,
    },
    /// It could not be asked, for this reason.
    NoAnswer(String),
}

/// The Track API.
#[derive(Debug)]
pub struct CustomerIo {
    transport: Transport,
    identifier: Identifier,
    max_jobs: usize,
    budget: Budget,
    gate: Gate,
    metrics: std::sync::Arc<Metrics>,
}

#[derive(Debug)]
enum Transport {
    /// Calls nobody; every call succeeds.
    Mock,
    Http(Box<Http>),
}

/// Where calls go, and as whom.
#[derive(Debug)]
struct Http {
    client: reqwest::Client,
    batch_url: Url,
    region_url: Url,
    authorization: HeaderValue,
}

/// One call's answer, or what happened instead.
struct Call {
    meaning: Meaning,
    http_status: Option<u16>,
}

impl CustomerIo {
    /// A client for these settings; without credentials, one that calls nobody and warns about it
    /// once.
    pub fn new(
        config: &Config,
        gate: GateConfig,
        metrics: std::sync::Arc<Metrics>,
    ) -> Result<Self, Error> {
        let transport = if config.site_id.is_empty() || config.api_key.expose_secret().is_empty() {
            tracing::warn!(
                "mock mode: CUSTOMERIO_SITE_ID or CUSTOMERIO_API_KEY is missing, no call is made \
                    and every call succeeds"
            );
            Transport::Mock
        } else {
            Transport::http(config)?
        };
        Ok(Self {
            transport,
            identifier: config.identifier,
            max_jobs: (config.max_operations / 2).max(1),
            budget: Budget::new(),
            gate: Gate::new(gate),
            metrics,
        })
    }

    /// Waits for the leave to call: until calls go through, or until it is this one's turn to
    /// probe.
    pub async fn pass(&self) -> Pass<'_> {
        loop {
            let (pass, asks_first) = self.gate.pass().await;
            // No job is risked to learn that nothing has changed: it would spend a retry, or fail
            // for good.
            if !asks_first || self.is_answered(&pass).await {
                return pass;
            }
        }
    }

    /// The leave to call, if calls go through now.
    pub fn try_pass(&self) -> Option<Pass<'_>> {
        self.gate.try_pass()
    }

    /// How many calls a second it may make, which is none until some are granted.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Makes no calls for `wait`: another replica was asked for it.
    pub fn hold(&self, wait: Duration) {
        self.gate.hold(wait);
    }

    /// Tells until when Customer.io has asked to be left alone, each time it does.
    pub fn watch_asked(&self) -> watch::Receiver<Option<Instant>> {
        self.gate.watch_asked()
    }

    /// Whether calls go through.
    pub fn gate(&self) -> GateView {
        self.gate.view()
    }

    /// Tells when that changes.
    pub fn watch_gate(&self) -> watch::Receiver<GateView> {
        self.gate.watch()
    }

    /// Time until the next probe, while no calls go through.
    pub fn probe_in(&self) -> Option<Duration> {
        self.gate.probe_in()
    }

    /// What Customer.io says of the credentials.
    pub async fn account(&self) -> Account {
        #[derive(serde::Deserialize)]
        struct Region {
            region: String,
        }
        let Transport::Http(http) = &self.transport else { return Account::Mock };
        let request =
            http.client.get(http.region_url.clone()).header(AUTHORIZATION, &http.authorization);
        match exchange(request).await {
            Err(error) => Account::NoAnswer(describe(&error)),
            Ok(Answered { status: 401 | 403, .. }) => Account::Refused,
            Ok(answered) => match serde_json::from_slice::<Region>(&answered.body) {
                Ok(Region { region }) => Account::In { region },
                Err(_) => {
                    Account::NoAnswer(format!("the answer {} can't be read", answered.status))
                }
            },
        }
    }

    /// Whether Customer.io answers, and accepts the credentials. It is asked for the account's
    /// region, which changes nothing. An answer that tells neither leaves it to a job's call: a
    /// proxy may know the batch endpoint alone.
    async fn is_answered(&self, pass: &Pass<'_>) -> bool {
        let Transport::Http(http) = &self.transport else { return true };
        self.budget.turn().await;
        let request =
            http.client.get(http.region_url.clone()).header(AUTHORIZATION, &http.authorization);
        let called = match self.exchange(request).await {
            Ok(Answered { status: 401 | 403, .. }) => Called::Refused,
            Ok(Answered { status: 408 | 429 | 500..=599, .. }) | Err(_) => Called::Failed,
            Ok(_) => Called::Answered,
        };
        if called != Called::Answered {
            pass.record(called);
        }
        called == Called::Answered
    }

    /// Makes a request. An answer that asks for it holds all others back.
    async fn exchange(&self, request: reqwest::RequestBuilder) -> reqwest::Result<Answered> {
        let answered = exchange(request).await?;
        if let Some(wait) = answered.retry_after {
            self.gate.asked(wait);
        }
        Ok(answered)
    }

    /// Sends the jobs, in as few calls as the limits allow. One answer a job, in their order.
    pub async fn push(&self, jobs: &[Work], pass: &Pass<'_>, holder: &impl Holder) -> Vec<Pushed> {
        let mut pushed = Vec::with_capacity(jobs.len());
        let mut ready = Vec::with_capacity(jobs.len());
        for (index, work) in jobs.iter().enumerate() {
            match operation::prepare(work, self.identifier) {
                Ok(prepared) => ready.push(Ready { index, job: work.job.id, prepared }),
                Err(outcome) => pushed.push((index, without_call(work, outcome))),
            }
        }
        let calls = self
            .split(&ready)
            .into_iter()
            .map(|call| self.send(call.iter().collect(), pass, holder));
        pushed.extend(join_all(calls).await.into_iter().flatten());
        pushed.sort_unstable_by_key(|(index, _)| *index);
        pushed.into_iter().map(|(_, pushed)| pushed).collect()
    }

    /// Cuts the jobs into calls, none over the limits of size and number.
    fn split<'a>(&self, jobs: &'a [Ready]) -> Vec<&'a [Ready]> {
        let mut calls = Vec::new();
        let (mut start, mut bytes) = (0, 0);
        for (end, ready) in jobs.iter().enumerate() {
            let size = ready.prepared.json.len() + 1;
            if end > start && (end - start >= self.max_jobs || bytes + size > MAX_CALL_BYTES) {
                calls.push(&jobs[start..end]);
                (start, bytes) = (end, 0);
            }
            bytes += size;
        }
        if start < jobs.len() {
            calls.push(&jobs[start..]);
        }
        calls
    }

    /// Makes one call, when its turn has come, for those of the jobs that are held still, unless
    /// the gate has shut in the meantime. A call that is refused whole is cut in halves until the
    /// culprit stands alone. Answers what became of each job, by its place among those that were
    /// given.
    fn send<'a>(
        &'a self,
        jobs: Vec<&'a Ready>,
        pass: &'a Pass<'_>,
        holder: &'a impl Holder,
    ) -> BoxFuture<'a, Vec<(usize, Pushed)>> {
        Box::pin(async move {
            self.budget.turn().await;
            let held = holder.still_held(jobs.iter().map(|ready| ready.job).collect()).await;
            let (mut jobs, lost): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|ready| held.contains(&ready.job));
            let mut pushed: Vec<_> =
                lost.into_iter().map(|ready| (ready.index, Pushed::Lost)).collect();
            if jobs.is_empty() || !pass.holds() {
                pushed.extend(jobs.into_iter().map(|ready| (ready.index, Pushed::Held)));
                return pushed;
            }
            let (started_at, started) = (Utc::now(), Instant::now());
            let call = self.call(&jobs).await;
            let duration = started.elapsed();
            pass.record(called(call.http_status, &call.meaning));
            self.metrics.call_duration.observe(duration.as_secs_f64());
            self.metrics.calls.with_label_values(&[status_label(call.http_status)]).inc();
            let outcomes = match call.meaning {
                Meaning::Each(outcomes) => outcomes,
                Meaning::Whole(failure) if jobs.len() == 1 => vec![Outcome::Refused(failure)],
                Meaning::Whole(_) => {
                    let right = jobs.split_off(jobs.len() / 2);
                    pushed.extend(self.send(jobs, pass, holder).await);
                    pushed.extend(self.send(right, pass, holder).await);
                    return pushed;
                }
            };
            let tried = |(ready, outcome): (&Ready, _)| {
                let attempt =
                    Attempt { started_at, duration, http_status: call.http_status, outcome };
                (
                    ready.index,
                    Pushed::Tried { contact_id: Some(ready.prepared.contact_id.clone()), attempt },
                )
            };
            pushed.extend(jobs.into_iter().zip(outcomes).map(tried));
            pushed
        })
    }

    async fn call(&self, jobs: &[&Ready]) -> Call {
        let Transport::Http(http) = &self.transport else {
            return Call {
                meaning: Meaning::Each(vec![Outcome::Accepted; jobs.len()]),
                http_status: None,
            };
        };
        let request = http
            .client
            .post(http.batch_url.clone())
            .header(AUTHORIZATION, &http.authorization)
            .header(CONTENT_TYPE, "application/json")
            .body(batch_body(jobs));
        match self.exchange(request).await {
            Ok(answered) => {
                let meaning = response::read(answered.answer(), jobs.len());
                Call { meaning, http_status: Some(answered.status) }
            }
            Err(error) => {
                let failure = Failure { error_type: ErrorType::Network, message: describe(&error) };
                let outcome = Outcome::Retryable { failure, retry_after: None };
                Call { meaning: Meaning::Each(vec![outcome; jobs.len()]), http_status: None }
            }
        }
    }
}

impl Transport {
    fn http(config: &Config) -> Result<Self, Error> {
        // The provider is the process's; a second client finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(config.timeout)
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(IDLE_TIMEOUT)
            // A redirect means the wrong region: followed, the data would pass through it.
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
            let url = format!("{}{path}", base.trim_end_matches('/'));
            url.parse().map_err(|why: <Url as std::str::FromStr>::Err| Error::Url {
                url: base.to_owned(),
                why: why.to_string(),
            })
        };
        Ok(Self::Http(Box::new(Http {
            client,
            batch_url: url("/api/v2/batch")?,
            region_url: url("/api/v1/accounts/region")?,
            authorization: basic_auth(&config.site_id, &config.api_key)?,
        })))
    }
}

fn basic_auth(site_id: &str, api_key: &SecretString) -> Result<HeaderValue, Error> {
    let credentials = format!("{site_id}:{}", api_key.expose_secret());
    let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
    let mut header =
        HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| Error::Credentials)?;
    header.set_sensitive(true);
    Ok(header)
}

fn batch_body(jobs: &[&Ready]) -> String {
    let operations: Vec<_> = jobs.iter().map(|ready| ready.prepared.json.as_str()).collect();
    format!("{{\"batch\":[{}]}}", operations.join(","))
}

fn without_call(work: &Work, outcome: Outcome) -> Pushed {
    let customer = &work.signup.customer;
    let attempt =
        Attempt { started_at: Utc::now(), duration: Duration::ZERO, http_status: None, outcome };
    Pushed::Tried { contact_id: customer.id.clone().or_else(|| customer.email.clone()), attempt }
}

/// An answer, read to its end.
struct Answered {
    status: u16,
    retry_after: Option<Duration>,
    location: Option<String>,
    body: Vec<u8>,
}

impl Answered {
    fn answer(&self) -> Answer<'_> {
        Answer {
            status: self.status,
            retry_after: self.retry_after,
            location: self.location.as_deref(),
            body: &self.body,
        }
    }
}

async fn exchange(request: reqwest::RequestBuilder) -> reqwest::Result<Answered> {
    let mut response = request.send().await?;
    let header = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let retry_after =
        header(RETRY_AFTER).and_then(|value| response::retry_after(&value, SystemTime::now()));
    let location = header(LOCATION);
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            break;
        }
    }
    Ok(Answered { status: response.status().as_u16(), retry_after, location, body })
}

/// The error with its causes, without the URL.
fn describe(error: &reqwest::Error) -> String {
    let what = if error.is_timeout() {
        "the call timed out"
    } else if error.is_connect() {
        "no connection to Customer.io"
    } else {
        "the call broke off"
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

/// How a call went, as far as the gate looks at it.
fn called(status: Option<u16>, meaning: &Meaning) -> Called {
    let is_retryable = |outcome: &Outcome| matches!(outcome, Outcome::Retryable { .. });
    match (status, meaning) {
        (Some(401 | 403 | 404 | 405 | 300..=399), _) => Called::Refused,
        (Some(408 | 429 | 500..=599), _) => Called::Failed,
        (_, Meaning::Each(outcomes))
            if !outcomes.is_empty() && outcomes.iter().all(is_retryable) =>
        {
            Called::Failed
        }
        _ => Called::Answered,
    }
}

fn status_label(status: Option<u16>) -> &'static str {
    match status {
        None => "none",
        Some(200) => "200",
        Some(207) => "207",
        Some(200..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400) => "400",
        Some(401) => "401",
        Some(403) => "403",
        Some(408) => "408",
        Some(413) => "413",
        Some(429) => "429",
        Some(400..=499) => "4xx",
        Some(500..=599) => "5xx",
        Some(_) => "other",
    }
}
