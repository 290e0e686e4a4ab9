//! `GET /healthz` and `GET /readyz`.

use std::{fmt::Display, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    admin::{
        http::{
            extract::Query,
            problem::{PROBLEM_JSON, Problem},
        },
        state::{AppState, Check},
    },
    customerio::BreakerReason,
    ledger::Schema,
    runtime::check::CheckStatus,
};

/// Maximum time for the database to answer a probe.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for which a lost consumer of a work queue counts as being replaced.
const CONSUMER_REPLACEMENT_TIME: Duration = Duration::from_secs(30);

/// Time between two checks whether batches may make progress.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// A batch without progress for longer, although everything that it needs answers, is stuck.
const PROGRESS_PAUSE_MAX: Duration = Duration::from_mins(5);
/// Maximum age of the last write to the database. A probe reads it within the minute that is
/// promised.
const WRITE_AGE_MAX: Duration = Duration::from_secs(45);

/// Reports a defect of the process: a task that has ended, or a batch that is stuck. Waiting for a
/// server is no defect.
pub(crate) async fn live(State(state): State<AppState>) -> Response {
    let pause = state.connected.get().map(|connected| connected.pipeline.progress.longest_pause());
    let problem = match (state.defect.get(), pause) {
        (Some(task), _) => format!("the task {task:?} has ended; the process stops"),
        (None, Some(pause)) if pause > PROGRESS_PAUSE_MAX => {
            format!("a batch has made no progress for {} s; restart the process", pause.as_secs())
        }
        _ => return Json(json!({ "status": "live" })).into_response(),
    };
    Problem::unavailable(problem).into_response()
}

/// Excuses the batches in flight while something that they need does not answer, until the second
/// stage of the shutdown.
pub async fn watch_progress(state: AppState) {
    loop {
        tokio::select! {
            () = state.shutdown.ended() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
        let Some(connected) = state.connected.get() else { continue };
        let answers = state.last_write.age() < WATCH_INTERVAL
            && connected.connections.iter().all(|connection| connection.is_connected())
            && connected.publisher.problem().is_none()
            && state.customerio.breaker().is_closed()
            && !state.customerio.rate_limiter().is_saturated();
        if !answers {
            connected.pipeline.progress.excuse();
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadyQuery {
    /// Lists all checks if it is present. Its value has no meaning.
    verbose: Option<String>,
}

/// The problems that the checks found.
#[derive(Debug, Default)]
struct ReadinessProblems(Vec<(Check, String)>);

impl ReadinessProblems {
    fn add(&mut self, check: Check, problem: impl Display) {
        self.0.push((check, problem.to_string()));
    }

    fn of(&self, check: Check) -> Option<String> {
        let found: Vec<_> = self.0.iter().filter(|(one, _)| *one == check).collect();
        let text: Vec<_> = found.iter().map(|(_, problem)| problem.as_str()).collect();
        (!text.is_empty()).then(|| text.join("; "))
    }

    /// One line per problem, such as `database: no answer within 2s`.
    fn reasons(&self) -> Vec<String> {
        let reason = |(check, problem): &(Check, String)| match check {
            // The problem names the far side.
            Check::Credentials => problem.clone(),
            check => format!("{check}: {problem}"),
        };
        self.0.iter().map(reason).collect()
    }
}

/// All checks whose result is known. Those of certificate files are only shown: a connection that
/// cannot use its file is not ready in any case.
fn checks(state: &AppState, problems: &ReadinessProblems) -> Vec<Value> {
    let result = |&check: &Check| {
        let problem = problems.of(check);
        let status = if problem.is_none() { CheckStatus::Passed } else { CheckStatus::Failed };
        json!({ "name": check, "status": status, "detail": problem.unwrap_or_default() })
    };
    let is_read_now = |check: &Check| {
        matches!(
            check,
            Check::Configuration
                | Check::Database
                | Check::Schema
                | Check::Queues
                | Check::Credentials
                | Check::Shutdown
        )
    };
    let is_known = |check: &&Check| is_read_now(check) || state.startup.is_known(**check);
    let checks = Check::ALL.iter().filter(is_known).map(result);
    checks.chain(state.certificates.check().iter().map(|file| json!(file))).collect()
}

/// Reports whether the service is ready to work. A 503 lists the reasons why it is not, and
/// `?verbose` lists all checks.
pub(crate) async fn ready(
    State(state): State<AppState>,
    Query(ReadyQuery { verbose }): Query<ReadyQuery>,
) -> Response {
    let problems = check(&state).await;
    let reasons = problems.reasons();
    let mut answer = if reasons.is_empty() {
        json!({ "status": "ready" })
    } else {
        let mut problem = json!(Problem::unavailable(reasons.join("; ")));
        problem["reasons"] = json!(reasons);
        problem
    };
    answer["mode"] = json!(state.customerio.mode());
    if verbose.is_some() {
        answer["checks"] = json!(checks(&state, &problems));
    }
    if reasons.is_empty() {
        return Json(answer).into_response();
    }
    let content_type = [(CONTENT_TYPE, PROBLEM_JSON)];
    (StatusCode::SERVICE_UNAVAILABLE, content_type, Json(answer)).into_response()
}

async fn check(state: &AppState) -> ReadinessProblems {
    let mut problems = ReadinessProblems::default();
    match tokio::time::timeout(DATABASE_TIMEOUT, state.ledger.schema()).await {
        Ok(Ok(schema)) => {
            if let Some(problem) = schema.problem() {
                problems.add(Check::Schema, format!("{problem}; {}", Schema::FIX));
            }
        }
        Ok(Err(error)) => {
            problems.add(Check::Database, format!("{error}; {}", state.ledger.fix(&error)))
        }
        Err(_) => problems.add(
            Check::Database,
            format!("no answer within {DATABASE_TIMEOUT:?}; {}", state.ledger.fix_of_silence()),
        ),
    }
    if problems.of(Check::Database).is_none()
        && let Some(problem) = state.last_write.overdue(WRITE_AGE_MAX)
    {
        problems.add(Check::Database, format!("writes: {problem}"));
    }
    for (check, reason) in state.startup.obstacles() {
        // It has the cause of a refused connection, which the pool does not report.
        problems.0.retain(|(one, _)| *one != check);
        problems.add(check, reason);
    }
    check_broker(state, &mut problems);
    if state.customerio.breaker().reason == Some(BreakerReason::Credentials) {
        let fix = "correct CUSTOMERIO_SITE_ID, CUSTOMERIO_API_KEY and CUSTOMERIO_REGION";
        let halt = if state.customerio.is_halted() {
            "; then restart the service or close the breaker (POST /breaker/close): no further job \
                is risked before"
        } else {
            ""
        };
        problems.add(Check::Credentials, format!("Customer.io: credentials refused; {fix}{halt}"));
    }
    if let Some(variable) = state.customerio.missing_credential()
        && problems.of(Check::Credentials).is_none()
    {
        problems.add(Check::Credentials, missing_credential(variable));
    }
    if state.shutdown.is_draining() {
        problems.add(Check::Shutdown, "stopping");
    }
    problems
}

/// The problem that exactly one credential is set.
pub fn missing_credential(variable: &str) -> String {
    format!(
        "Customer.io: {variable} is not set, so nothing is consumed; set it, or set \
            customerio.allow_mock = true for mock mode"
    )
}

fn check_broker(state: &AppState, problems: &mut ReadinessProblems) {
    let Some(connected) = state.connected.get() else { return };
    for connection in &connected.connections {
        if !connection.is_connected() {
            let cause = connection.problem().unwrap_or_else(|| "it was lost".to_owned());
            let problem = format!("the {} connection is down: {cause}", connection.name());
            problems.add(Check::Broker, problem);
        }
        for queue in connection.consumers().lost_for(CONSUMER_REPLACEMENT_TIME) {
            problems.add(Check::Queues, format!("{queue} is not consumed by this replica"));
        }
    }
    if let Some(problem) = connected.topology.problem() {
        problems.add(Check::Topology, problem);
    }
    if let Some(problem) = connected.publisher.problem() {
        problems.add(Check::Broker, problem);
    }
}
