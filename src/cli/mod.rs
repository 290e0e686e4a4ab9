//! The command line: one function a subcommand.

mod doctor;
mod migrate;
mod operate;
mod publish;
mod sample;
mod serve;
mod simulate;
mod topology;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    app,
    config::{self, Config},
    runtime::telemetry,
};

/// Moves signups from RabbitMQ into Customer.io.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    /// A TOML file with settings; config/default.toml shows them all.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service.
    Serve,
    /// Apply the database migrations and exit.
    Migrate,
    /// Declare exchanges, queues and bindings and exit.
    Topology(topology::Args),
    /// Check configuration, database, broker and Customer.io, and tell how to mend what does not
    /// hold.
    Doctor,
    /// Run a simulator of Customer.io's Track API.
    Simulate(simulate::Args),
    /// Publish events from a JSON-lines file, standard input, or a generator.
    Publish(publish::Args),
    /// See and mend failures of a running service.
    Failures(operate::FailuresArgs),
    /// Look at single jobs of a running service.
    Jobs(operate::JobsArgs),
    /// Tell where a running service stands.
    Stats(operate::StatsArgs),
}

/// Why the program failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Telemetry(#[from] telemetry::Error),
    #[error(transparent)]
    App(#[from] app::Error),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Other(String),
}

impl Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Telemetry(_)
            | Self::Usage(_)
            | Self::App(app::Error::Config(_) | app::Error::CustomerIo(_)) => ExitCode::from(2),
            Self::App(_) | Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

/// Runs the program: 0 done, 1 failed, 2 wrong usage or configuration.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("customerio-sync: {error}");
            error.exit_code()
        }
    }
}

fn execute(cli: Cli) -> Result<(), Error> {
    let config = Config::load(cli.config.as_deref(), std::env::vars_os().filter_map(readable))?;
    let _guard = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Error::Other(format!("starting the runtime: {error}")))?;
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::run(config).await,
            Command::Migrate => migrate::run(&config).await,
            Command::Topology(args) => topology::run(&config, args).await,
            Command::Doctor => doctor::run(&config).await,
            Command::Simulate(args) => simulate::run(args).await,
            Command::Publish(args) => publish::run(&config, args).await,
            Command::Failures(args) => operate::failures(args).await,
            Command::Jobs(args) => operate::jobs(args).await,
            Command::Stats(args) => operate::stats(args).await,
        }
    });
    // Tasks that still wait for something are not waited for.
    runtime.shutdown_background();
    ended
}

/// A variable whose name and value are text; others can't be settings.
fn readable((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
