//! `customerio-sync doctor`: one line per check, with the fix if it fails.

use std::time::Duration;

use super::Error;
use crate::{
    broker,
    config::Config,
    customerio::{self, Account, CustomerIo},
    ledger::{Ledger, Schema},
    runtime::metrics::Metrics,
};

/// Maximum time to wait for an answer of the database.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(10);

/// A problem that a check found, and its fix.
struct FailedCheck {
    problem: String,
    fix: String,
}

fn failed(problem: impl Into<String>, fix: impl Into<String>) -> FailedCheck {
    FailedCheck { problem: problem.into(), fix: fix.into() }
}

/// Checks everything that the service needs. Fails if any check found a problem.
pub(super) async fn run(config: &Config) -> Result<(), Error> {
    // An invalid configuration is reported before this point.
    let mut problems = print_check("configuration", Vec::new());
    let (database, broker, customerio) =
        tokio::join!(database(config), broker(config), customerio(config));
    problems += print_check("database", database);
    problems += print_check("broker", broker);
    problems += print_check("Customer.io", customerio);
    match problems {
        0 => Ok(()),
        1 => Err(Error::Other("1 problem found".to_owned())),
        _ => Err(Error::Other(format!("{problems} problems found"))),
    }
}

/// Prints one line per problem, or one line that says that the check passed. Returns the number of
/// problems.
fn print_check(name: &str, failures: Vec<FailedCheck>) -> usize {
    if failures.is_empty() {
        println!("ok    {name}");
    }
    for FailedCheck { problem, fix } in &failures {
        println!("FAIL  {name}: {problem}; fix: {fix}");
    }
    failures.len()
}

async fn database(config: &Config) -> Vec<FailedCheck> {
    if let Err(error) = config.require_database() {
        return vec![failed("DATABASE_URL is not set", error.to_string())];
    }
    let make_reachable = "start PostgreSQL, or set DATABASE_URL to its address";
    let ledger =
        match Ledger::new(&config.database, &config.tls, config.retry.delays.max_attempts()) {
            Ok(ledger) => ledger,
            Err(error) => return vec![failed(error.to_string(), make_reachable)],
        };
    let checked = tokio::time::timeout(DATABASE_TIMEOUT, ledger.schema()).await;
    match checked {
        Err(_) => vec![failed(format!("no answer within {DATABASE_TIMEOUT:?}"), make_reachable)],
        Ok(Err(error)) => vec![failed(error.to_string(), make_reachable)],
        Ok(Ok(schema)) => {
            schema.problem().map(|problem| failed(problem, Schema::FIX)).into_iter().collect()
        }
    }
}

async fn broker(config: &Config) -> Vec<FailedCheck> {
    if let Err(error) = config.require_broker() {
        return vec![failed("AMQP_URL is not set", error.to_string())];
    }
    let topology = broker::Topology::new(&config.retry.delays, &config.topology);
    let address = match broker::Address::new(&config.broker, &config.tls) {
        Ok(address) => address,
        Err(error) => return vec![failed(error.to_string(), "correct AMQP_URL")],
    };
    match broker::differences(&address, &topology).await {
        Err(error) => {
            vec![failed(error.to_string(), "start RabbitMQ, or set AMQP_URL to its address")]
        }
        Ok(differences) => {
            let fix = |error: &broker::Error| match error {
                broker::Error::Missing(_) => "run `customerio-sync topology`",
                _ => {
                    "delete it when it is empty and run `customerio-sync topology`, or change the \
                     setting that this value comes from"
                }
            };
            differences.iter().map(|error| failed(error.to_string(), fix(error))).collect()
        }
    }
}

async fn customerio(config: &Config) -> Vec<FailedCheck> {
    let set_credentials = "set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY to the Track API \
        credentials of the workspace";
    let metrics = Metrics::default().into();
    let client = match CustomerIo::new(&config.customerio, config.breaker.clone(), metrics) {
        Ok(client) => client,
        Err(customerio::Error::Credentials) => {
            return vec![failed(customerio::Error::Credentials.to_string(), set_credentials)];
        }
        Err(error) => {
            return vec![failed(error.to_string(), "correct CUSTOMERIO_TRACK_URL, or unset it")];
        }
    };
    match client.account().await {
        Account::Mock => {
            vec![failed("mock mode: no credentials are set, so no calls are made", set_credentials)]
        }
        Account::Refused => vec![failed("the credentials are refused", set_credentials)],
        Account::NoAnswer(reason) => {
            let fix = "allow connections from this machine to Customer.io, or set \
                       CUSTOMERIO_TRACK_URL";
            vec![failed(reason, fix)]
        }
        Account::Accepted { region } if !config.customerio.region.is(&region) => {
            vec![failed(
                format!("the workspace is in the region {region:?}"),
                format!("set CUSTOMERIO_REGION={region}"),
            )]
        }
        Account::Accepted { .. } => Vec::new(),
    }
}
