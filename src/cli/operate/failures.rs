//! `customerio-sync failures list|groups|retry|dismiss`.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Error, client::Client, table};
use crate::{
    job::{ErrorType, SyncPhase},
    ledger::BulkStatus,
};

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Failures {
    /// List the open failures.
    List {
        #[command(flatten)]
        filters: FilterArgs,
        /// Maximum failures in the list.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
        limit: u16,
        /// Failures to skip at the start of the list.
        #[arg(long, default_value_t = 0)]
        offset: u32,
    },
    /// Show the open failures grouped by error signature.
    Groups,
    /// Retry the failed jobs of a signup, or all selected failures at a limited rate; or send the
    /// jobs that were completed in mock mode.
    Retry {
        #[command(flatten)]
        selection: SelectionArgs,
        /// Instead of failures, send the jobs that were completed in mock mode.
        #[arg(long, conflicts_with_all = ["signup", "all", "error_type", "signature"])]
        mock: bool,
        /// Retry the failed jobs of this signup immediately.
        #[arg(
            long,
            value_name = "ID",
            conflicts_with_all = ["error_type", "search", "signature", "job", "all", "dry_run"]
        )]
        signup: Option<Uuid>,
        /// Only show what would be retried.
        #[arg(long)]
        dry_run: bool,
    },
    /// Resolve failures without a retry.
    Dismiss {
        #[command(flatten)]
        selection: SelectionArgs,
        /// Reason, which is stored with the dismissal.
        #[arg(long)]
        reason: String,
        /// Only show what would be dismissed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct FilterArgs {
    /// Only failures in this phase: initial or enriched.
    #[arg(long)]
    phase: Option<SyncPhase>,
    /// Only failures of this type: rate_limit, server_error, network or other.
    #[arg(long)]
    error_type: Option<ErrorType>,
    /// Only customers whose e-mail address or name contains TEXT.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only failures with this error signature, as shown by `failures groups`.
    #[arg(long, value_name = "TEXT")]
    signature: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SelectionArgs {
    #[command(flatten)]
    filters: FilterArgs,
    /// Only this job; may be repeated.
    #[arg(long, value_name = "ID")]
    job: Vec<Uuid>,
    /// All open failures.
    #[arg(long)]
    all: bool,
}

impl FilterArgs {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("syncPhase", self.phase.map(|phase| phase.to_string())),
            ("errorType", self.error_type.map(|kind| kind.to_string())),
            ("search", self.search.clone()),
            ("signature", self.signature.clone()),
        ]
    }
}

impl SelectionArgs {
    /// Returns the body of a request. An empty selection is an error, because the API would select
    /// every open failure; `--all` asks for that explicitly. With `mock`, the jobs that were
    /// completed in mock mode are selected instead.
    fn body(&self, mock: bool) -> Result<Map<String, Value>, Error> {
        let filters = self.filters.query().into_iter();
        let mut body: Map<_, _> =
            filters.filter_map(|(key, value)| Some((key.to_owned(), value?.into()))).collect();
        if !self.job.is_empty() {
            body.insert("jobIds".to_owned(), json!(self.job));
        }
        if mock {
            body.insert("mock".to_owned(), true.into());
        }
        if body.is_empty() != self.all {
            let usage = "specify filters or jobs, or --all for every open failure";
            return Err(Error::Usage(usage.to_owned()));
        }
        Ok(body)
    }
}

const LIST_COLUMNS: [(&str, &str); 8] = [
    ("JOB", "/jobId"),
    ("SIGNUP", "/signupId"),
    ("PHASE", "/syncPhase"),
    ("RETRIES", "/attemptCount"),
    ("TYPE", "/errorType"),
    ("FAILED AT", "/failedAt"),
    ("CUSTOMER", "/customer/email"),
    ("ERROR", "/errorMessage"),
];

const GROUP_COLUMNS: [(&str, &str); 5] = [
    ("COUNT", "/count"),
    ("CAUSE", "/verdict/cause"),
    ("LAST SEEN", "/lastSeen"),
    ("SIGNATURE", "/signature"),
    ("NEXT STEP", "/verdict/next"),
];

pub(super) async fn run(client: &Client, command: Failures) -> Result<(), Error> {
    match command {
        Failures::List { filters, limit, offset } => list(client, &filters, limit, offset).await,
        Failures::Groups => groups(client).await,
        Failures::Retry { selection, signup: Some(signup), .. } => {
            retry_signup(client, signup, selection.filters.phase).await
        }
        Failures::Retry { selection, mock, signup: None, dry_run } => {
            retry(client, &selection, mock, dry_run).await
        }
        Failures::Dismiss { selection, reason, dry_run } => {
            dismiss(client, &selection, reason, dry_run).await
        }
    }
}

async fn list(client: &Client, filters: &FilterArgs, limit: u16, offset: u32) -> Result<(), Error> {
    let mut query = filters.query();
    query.extend([
        ("limit", Some(limit.to_string())),
        ("offset", Some(offset.to_string())),
        ("masked", Some("true".to_owned())),
    ]);
    let list = client.get("/sync-failures", &query).await?;
    client.show(&list, |list| {
        let shown = list["items"].as_array().map_or(0, Vec::len);
        let rows = table::of_items(&list["items"], &LIST_COLUMNS);
        let more = if list["totalIsExact"] == false { "more than " } else { "" };
        format!("{rows}\n\n{shown} of {more}{}", list["total"])
    });
    Ok(())
}

async fn groups(client: &Client) -> Result<(), Error> {
    let groups = client.get("/failure-groups", &[]).await?;
    client.show(&groups, |groups| table::of_items(&groups["items"], &GROUP_COLUMNS));
    Ok(())
}

async fn retry_signup(
    client: &Client,
    signup: Uuid,
    phase: Option<SyncPhase>,
) -> Result<(), Error> {
    let phase = phase.map(|phase| phase.to_string());
    let retried = client.post(&format!("/{signup}/retry"), &[("syncPhase", phase)], None).await?;
    client.show(&retried, |retried| {
        let rows =
            table::of_items(&retried["retried"], &[("JOB", "/jobId"), ("PHASE", "/syncPhase")]);
        let notice = retried["notice"].as_str().unwrap_or("the jobs restart with a first attempt");
        format!("{rows}\n\n{notice}")
    });
    Ok(())
}

async fn retry(
    client: &Client,
    selection: &SelectionArgs,
    mock: bool,
    dry_run: bool,
) -> Result<(), Error> {
    let body = selection.body(mock)?.into();
    let path = "/sync-failures/retry";
    let response = client.post(path, &dry_run_query(dry_run), Some(&body)).await?;
    client.show(&response, if dry_run { dry_run_table } else { bulk_retry_table });
    Ok(())
}

async fn dismiss(
    client: &Client,
    selection: &SelectionArgs,
    reason: String,
    dry_run: bool,
) -> Result<(), Error> {
    let mut body = selection.body(false)?;
    body.insert("reason".to_owned(), reason.into());
    let path = "/sync-failures/dismiss";
    let response = client.post(path, &dry_run_query(dry_run), Some(&body.into())).await?;
    client.show(&response, |response| {
        if dry_run {
            dry_run_table(response)
        } else if response["status"] == BulkStatus::Running.as_str() {
            bulk_action_table(response)
        } else {
            format!("{} dismissed", response["dismissed"])
        }
    });
    Ok(())
}

fn dry_run_query(dry_run: bool) -> [(&'static str, Option<String>); 1] {
    [("dryRun", Some(dry_run.to_string()))]
}

fn dry_run_table(preview: &Value) -> String {
    let mut facts = vec![
        ("eligible", table::cell(&preview["eligible"])),
        ("of these older than 72 hours", table::cell(&preview["olderThan72Hours"])),
    ];
    for group in preview["notEligible"].as_array().into_iter().flatten() {
        let meaning = table::cell(&group["meaning"]);
        facts.push(("not eligible", format!("{}: {meaning}", group["count"])));
    }
    table::of_facts(&facts)
}

fn bulk_retry_table(bulk_retry: &Value) -> String {
    let fact = |key: &str| table::cell(&bulk_retry[key]);
    table::of_facts(&[
        ("bulk retry", fact("id")),
        ("status", fact("status")),
        ("eligible", fact("eligible")),
    ])
}

fn bulk_action_table(dismissal: &Value) -> String {
    let fact = |key: &str| table::cell(&dismissal[key]);
    table::of_facts(&[
        ("bulk action", fact("id")),
        ("status", fact("status")),
        ("eligible", fact("eligible")),
        ("dismissed so far", fact("dismissed")),
    ])
}
