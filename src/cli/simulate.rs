//! `customerio-sync simulate`.

use std::net::SocketAddr;

use super::Error;
use crate::{runtime::shutdown, simulator};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address to listen on; port 0 selects a free port.
    #[arg(long, default_value = "127.0.0.1:8090")]
    addr: SocketAddr,
    /// Initial fault as JSON, such as {"kind":"status","status":503,"calls":20}; may be repeated.
    #[arg(long = "fault", value_name = "JSON")]
    faults: Vec<simulator::Fault>,
}

pub(super) async fn run(args: Args) -> Result<(), Error> {
    let failed = |doing: &str, error: std::io::Error| Error::Other(format!("{doing}: {error}"));
    let simulator = simulator::Simulator::start(args.addr, args.faults)
        .await
        .map_err(|error| failed(&format!("listening on {}", args.addr), error))?;
    eprintln!("simulating Customer.io's Track API on http://{}", simulator.addr());
    shutdown::stop_signal().await.map_err(|error| failed("waiting for signals", error))
}
