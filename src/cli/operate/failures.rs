//! `customerio-sync failures list|groups|retry|dismiss`.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Error, client::Client, table};
use crate::job::{ErrorType, SyncPhase};

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Failures {
    /// List the open failures.
    List {
        #[command(flatten)]
        filters: Filters,
        /// Failures in the list at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
        limit: u16,
        /// Failures that are left out at the start.
        #[arg(long, default_value_t = 0)]
        offset: u32,
    },
    /// Group the open failures by what they have in common.
    Groups,
    /// Retry the failed jobs of a signup, or all failures of a selection at a bounded rate.
    Retry {
        #[command(flatten)]
        selection: Selection,
        /// Retry the failed jobs of this signup now.
        #[arg(long, value_name = "ID", conflicts_with_all = ["error_type", "search", "signature",
        "job", "all", "dry_run"])]
        signup: Option<Uuid>,
        /// Only tell what would be retried.
        #[arg(long)]
        dry_run: bool,
    },
    /// Resolve failures without a retry.
    Dismiss {
        #[command(flatten)]
        selection: Selection,
        /// Why, for those who look later.
        #[arg(long)]
        reason: String,
        /// Only tell what would be dismissed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Filters {
    /// Only this phase: initial or enriched.
    #[arg(long)]
    phase: Option<SyncPhase>,
    /// Only this kind of trouble: rate_limit, server_error, network or other.
    #[arg(long)]
    error_type: Option<ErrorType>,
    /// Only customers with this in their e-mail address or name.
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only this error signature, as `failures groups` shows it.
    #[arg(long, value_name = "TEXT")]
    signature: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Selection {
    #[command(flatten)]
    filters: Filters,
    /// Only this job; may be given many times.
    #[arg(long, value_name = "ID")]
    job: Vec<Uuid>,
    /// Every open failure.
    #[arg(long)]
    all: bool,
}

impl Filters {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        vec![
            ("syncPhase", self.phase.map(|phase| phase.to_string())),
            ("errorType", self.error_type.map(|kind| kind.to_string())),
            ("search", self.search.clone()),
            ("signature", self.signature.clone()),
        ]
    }
}

impl Selection {
    /// The body of a request. Nothing named is nothing meant: everything is asked for by `--all`.
    fn body(&self) -> Result<Map<String, Value>, Error> {
        let filters = self.filters.query().into_iter();
        let mut body: Map<_, _> =
            filters.filter_map(|(key, value)| Some((key.to_owned(), value?.into()))).collect();
        if !self.job.is_empty() {
            body.insert("jobIds".to_owned(), json!(self.job));
        }
        if body.is_empty() != self.all {
            let told = "name filters or jobs, or --all for every open failure";
            return Err(Error::Usage(told.to_owned()));
        }
        Ok(body)
    }
}

const COLUMNS: [(&str, &str); 8] = [
    ("JOB", "/jobId"),
    ("SIGNUP", "/signupId"),
    ("PHASE", "/syncPhase"),
    ("RETRIES", "/attemptCount"),
    ("TYPE", "/errorType"),
    ("FAILED AT", "/failedAt"),
    ("CUSTOMER", "/customer/email"),
    ("ERROR", "/errorMessage"),
];

pub(super) async fn run(client: &Client, command: Failures) -> Result<(), Error> {
    match command {
        Failures::List { filters, limit, offset } => {
            let mut query = filters.query();
            query.extend([
                ("limit", Some(limit.to_string())),
                ("offset", Some(offset.to_string())),
                ("masked", Some("true".to_owned())),
            ]);
            let list = client.get("/sync-failures", &query).await?;
            client.show(&list, |list| {
                let shown = list["items"].as_array().map_or(0, Vec::len);
                format!(
                    "{}\n\n{shown} of {}",
                    table::of_items(&list["items"], &COLUMNS),
                    list["total"]
                )
            });
        }
        Failures::Groups => {
            let groups = client.get("/failure-groups", &[]).await?;
            let columns = [
                ("COUNT", "/count"),
                ("CAUSE", "/verdict/cause"),
                ("LAST SEEN", "/lastSeen"),
                ("SIGNATURE", "/signature"),
                ("NEXT", "/verdict/next"),
            ];
            client.show(&groups, |groups| table::of_items(&groups["items"], &columns));
        }
        Failures::Retry { selection, signup: Some(signup), .. } => {
            let phase = selection.filters.phase.map(|phase| phase.to_string());
            let retried =
                client.post(&format!("/{signup}/retry"), &[("syncPhase", phase)], None).await?;
            let columns = [("JOB", "/jobId"), ("PHASE", "/syncPhase")];
            client.show(&retried, |retried| {
                let notice =
                    retried["notice"].as_str().unwrap_or("they start again from the first call");
                format!("{}\n\n{notice}", table::of_items(&retried["retried"], &columns))
            });
        }
        Failures::Retry { selection, signup: None, dry_run } => {
            let body = selection.body()?.into();
            let answer = client.post("/sync-failures/retry", &dry(dry_run), Some(&body)).await?;
            client.show(
                &answer,
                |answer| if dry_run { dry_run_table(answer) } else { bulk_table(answer) },
            );
        }
        Failures::Dismiss { selection, reason, dry_run } => {
            let mut body = selection.body()?;
            body.insert("reason".to_owned(), reason.into());
            let answer =
                client.post("/sync-failures/dismiss", &dry(dry_run), Some(&body.into())).await?;
            client.show(&answer, |answer| {
                if dry_run {
                    dry_run_table(answer)
                } else {
                    format!("{} dismissed", answer["dismissed"])
                }
            });
        }
    }
    Ok(())
}

fn dry(dry_run: bool) -> [(&'static str, Option<String>); 1] {
    [("dryRun", Some(dry_run.to_string()))]
}

fn dry_run_table(answer: &Value) -> String {
    let mut facts = vec![
        ("eligible", table::cell(&answer["eligible"])),
        ("of them older than 72 hours", table::cell(&answer["olderThan72Hours"])),
    ];
    for one in answer["notEligible"].as_array().into_iter().flatten() {
        facts.push(("left alone", format!("{}: {}", one["count"], table::cell(&one["meaning"]))));
    }
    table::of_facts(&facts)
}

fn bulk_table(bulk: &Value) -> String {
    let fact = |key: &str| table::cell(&bulk[key]);
    table::of_facts(&[
        ("bulk retry", fact("id")),
        ("status", fact("status")),
        ("eligible", fact("eligible")),
    ])
}
