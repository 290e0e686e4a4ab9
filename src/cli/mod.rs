//! The command line: one module per subcommand.

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
    runtime::{telemetry, tls},
};

/// Moves signups from RabbitMQ into Customer.io.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    /// TOML file with settings; config/default.toml lists all of them.
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
    /// Declare the exchanges, queues and bindings and exit.
    Topology(topology::Args),
    /// Check configuration, database, broker and Customer.io, and print a fix for each problem.
    Doctor(doctor::Args),
    /// Run a simulator of Customer.io's Track API.
    Simulate(simulate::Args),
    /// Publish events from a JSON Lines file, standard input or a generator.
    Publish(publish::Args),
    /// Show, retry or dismiss failures of a running service.
    Failures(operate::FailuresArgs),
    /// Show a job of a running service.
    Jobs(operate::JobsArgs),
    /// Show the state of a running service.
    Stats(operate::StatsArgs),
}

/// An error that ends the program.
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

/// Runs the program. Exit codes: 0 success, 1 failure, 2 wrong usage or configuration.
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
    // Before anything builds a TLS client: the exporter of traces is one.
    tls::install_crypto_provider();
    let loaded = Config::load(cli.config.as_deref(), std::env::vars_os().filter_map(into_utf8));
    let config = match (loaded, &cli.command) {
        (Ok(mut config), Command::Doctor(_)) => {
            doctor::quiet(&mut config.telemetry);
            config
        }
        (Err(error), Command::Doctor(args)) => {
            doctor::report_configuration(args, &error);
            return Err(error.into());
        }
        (loaded, _) => loaded?,
    };
    let _guard = telemetry::init(&config.telemetry, &config.tls.ca_file)?;
    config.warn_of_renamed_keys();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| Error::Other(format!("starting the runtime: {error}")))?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::run(config).await,
            Command::Migrate => migrate::run(&config).await,
            Command::Topology(args) => topology::run(&config, args).await,
            Command::Doctor(args) => doctor::run(&config, args).await,
            Command::Simulate(args) => simulate::run(args).await,
            Command::Publish(args) => publish::run(&config, args).await,
            Command::Failures(args) => operate::failures(args).await,
            Command::Jobs(args) => operate::jobs(args).await,
            Command::Stats(args) => operate::stats(args).await,
        }
    });
    // Do not wait for tasks that are still blocked.
    runtime.shutdown_background();
    result
}

/// Returns an environment variable if its name and value are UTF-8. Others cannot be settings.
fn into_utf8((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}
