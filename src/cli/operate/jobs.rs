//! `customerio-sync jobs show`.

use serde_json::Value;
use uuid::Uuid;

use super::{Error, client::Client, table};

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Jobs {
    /// Show a job with its attempts and its audit trail.
    Show {
        /// Id of the job.
        id: Uuid,
    },
}

pub(super) async fn run(client: &Client, command: Jobs) -> Result<(), Error> {
    let Jobs::Show { id } = command;
    let detail = client.get(&format!("/jobs/{id}"), &[("masked", Some("true".to_owned()))]).await?;
    client.show(&detail, page);
    Ok(())
}

fn page(detail: &Value) -> String {
    let fact = |pointer: &str| detail.pointer(pointer).map(table::cell).unwrap_or_default();
    let facts = table::of_facts(&[
        ("job", fact("/job/jobId")),
        ("signup", fact("/job/signupId")),
        ("phase", fact("/job/syncPhase")),
        ("status", fact("/job/status")),
        ("completed in mock mode", fact("/job/mock")),
        ("retries", format!("{} of {}", fact("/job/attemptCount"), fact("/job/maxAttempts"))),
        ("next retry at", fact("/job/nextRetryAt")),
        ("restarts", fact("/job/run")),
        ("tracked event", fact("/job/trackedEventId")),
        ("event occurred at", fact("/job/occurredAt")),
        ("the event stated", fact("/job/statedAt")),
        ("customer", fact("/signup/customer/email")),
        ("not applied", fact("/job/warningMessage")),
        ("error", fact("/job/errorMessage")),
        ("meaning", fact("/verdict/meaning")),
        ("next step", fact("/verdict/next")),
        ("warning", fact("/verdict/warning")),
        ("dismissed", fact("/job/dismissedReason")),
    ]);
    let attempts = table::of_items(
        &detail["attempts"],
        &[
            ("RUN", "/run"),
            ("ATTEMPT", "/attempt"),
            ("STARTED AT", "/startedAt"),
            ("STATUS", "/httpStatus"),
            ("RETRY TIER", "/tier"),
            ("ERROR", "/errorMessage"),
        ],
    );
    let audit = table::of_items(
        &detail["audit"],
        &[("AT", "/createdAt"), ("ACTOR", "/actor"), ("ACTION", "/action")],
    );
    format!("{facts}\n\n{attempts}\n\n{audit}")
}
