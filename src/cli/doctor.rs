//! `customerio-sync doctor`: one line a check, with the mend where it does not hold.

use std::time::Duration;

use super::Error;
use crate::{
    broker,
    config::Config,
    customerio::{self, Account, CustomerIo},
    ledger::Ledger,
    runtime::metrics::Metrics,
};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What does not hold, and what mends it.
struct Fault {
    what: String,
    mend: String,
}

fn fault(what: impl Into<String>, mend: impl Into<String>) -> Fault {
    Fault { what: what.into(), mend: mend.into() }
}

/// Checks everything that the service needs. Fails if anything does not hold.
pub(super) async fn run(config: &Config) -> Result<(), Error> {
    // What can't be read was told before this was reached.
    let mut faults = tell("configuration", Vec::new());
    let (database, broker, customerio) =
        tokio::join!(database(config), broker(config), customerio(config));
    faults += tell("database", database);
    faults += tell("broker", broker);
    faults += tell("Customer.io", customerio);
    if faults == 0 {
        Ok(())
    } else {
        Err(Error::Other(format!("{faults} of the checks do not hold")))
    }
}

/// Prints a line a fault, or that there is none. Answers how many there are.
fn tell(what: &str, faults: Vec<Fault>) -> usize {
    if faults.is_empty() {
        println!("ok    {what}");
    }
    for fault in &faults {
        println!("FAIL  {what}: {}; mend: {}", fault.what, fault.mend);
    }
    faults.len()
}

async fn database(config: &Config) -> Vec<Fault> {
    if let Err(error) = config.require_database() {
        return vec![fault("DATABASE_URL is not set", error.to_string())];
    }
    let reachable = "start PostgreSQL, or set DATABASE_URL to where it is";
    let ledger = match Ledger::new(&config.database, config.retry.delays.max_attempts()) {
        Ok(ledger) => ledger,
        Err(error) => return vec![fault(error.to_string(), reachable)],
    };
    let checked = tokio::time::timeout(PATIENCE, ledger.check_schema()).await;
    match checked {
        Err(_) => vec![fault(format!("no answer within {PATIENCE:?}"), reachable)],
        Ok(Err(error)) => vec![fault(error.to_string(), reachable)],
        Ok(Ok(None)) => Vec::new(),
        Ok(Ok(Some(difference))) => {
            vec![fault(difference, "run `customerio-sync migrate` of this version")]
        }
    }
}

async fn broker(config: &Config) -> Vec<Fault> {
    if let Err(error) = config.require_broker() {
        return vec![fault("AMQP_URL is not set", error.to_string())];
    }
    let topology = broker::Topology::new(&config.retry.delays, &config.topology);
    match broker::differences(&config.broker, &topology).await {
        Err(error) => {
            vec![fault(error.to_string(), "start RabbitMQ, or set AMQP_URL to where it is")]
        }
        Ok(differences) => {
            let mend = |error: &broker::Error| match error {
                broker::Error::Missing(_) => "run `customerio-sync topology`",
                _ => {
                    "delete it when it is empty and run `customerio-sync topology`, or change the \
                        setting that names this value"
                }
            };
            differences.iter().map(|error| fault(error.to_string(), mend(error))).collect()
        }
    }
}

async fn customerio(config: &Config) -> Vec<Fault> {
    let credentials = "set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY to the Track API credentials \
        of the workspace";
    let client =
        match CustomerIo::new(&config.customerio, config.gate.clone(), Metrics::default().into()) {
            Ok(client) => client,
            Err(customerio::Error::Credentials) => {
                return vec![fault(customerio::Error::Credentials.to_string(), credentials)];
            }
            Err(error) => {
                return vec![fault(error.to_string(), "set CUSTOMERIO_TRACK_URL, or leave it out")];
            }
        };
    match client.account().await {
        Account::Mock => {
            vec![fault("mock mode: no credentials are set, nobody is called", credentials)]
        }
        Account::Refused => vec![fault("the credentials are refused", credentials)],
        Account::NoAnswer(why) => {
            vec![fault(why, "let this machine reach Customer.io, or set CUSTOMERIO_TRACK_URL")]
        }
        Account::In { region } if !config.customerio.region.is(&region) => {
            vec![fault(
                format!("the workspace is in the region {region:?}"),
                format!("set CUSTOMERIO_REGION={region}"),
            )]
        }
        Account::In { .. } => Vec::new(),
    }
}
