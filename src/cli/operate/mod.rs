//! Operator commands: the HTTP API that the page also uses, as tables for people or as JSON for
//! programs.

mod client;
mod failures;
mod jobs;
mod stats;
mod table;

use super::Error;
use client::Client;

pub(super) use failures::Failures;
pub(super) use jobs::Jobs;

/// Address of the service, credentials and output format.
#[derive(Debug, clap::Args)]
pub(super) struct ServiceArgs {
    /// Base URL of the service.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "CUSTOMERIO_SYNC_URL",
        default_value = "http://127.0.0.1:8080"
    )]
    url: String,
    /// Token from the service's ADMIN_TOKENS; not needed on its machine if it has no tokens.
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "CUSTOMERIO_SYNC_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Print the response of the API as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct FailuresArgs {
    #[command(flatten)]
    connection: ServiceArgs,
    #[command(subcommand)]
    command: Failures,
}

#[derive(Debug, clap::Args)]
pub(super) struct JobsArgs {
    #[command(flatten)]
    connection: ServiceArgs,
    #[command(subcommand)]
    command: Jobs,
}

#[derive(Debug, clap::Args)]
pub(super) struct StatsArgs {
    #[command(flatten)]
    connection: ServiceArgs,
}

pub(super) async fn failures(args: FailuresArgs) -> Result<(), Error> {
    failures::run(&Client::new(args.connection)?, args.command).await
}

pub(super) async fn jobs(args: JobsArgs) -> Result<(), Error> {
    jobs::run(&Client::new(args.connection)?, args.command).await
}

pub(super) async fn stats(args: StatsArgs) -> Result<(), Error> {
    stats::run(&Client::new(args.connection)?).await
}
