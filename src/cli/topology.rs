//! `customerio-sync topology`.

use std::sync::Arc;

use super::Error;
use crate::{
    app,
    broker::{self, Address, Connection, Topology},
    config::Config,
    runtime::metrics::Metrics,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a RabbitMQ definitions file instead of declaring anything.
    #[arg(long)]
    print: bool,
}

pub(super) async fn run(config: &Config, args: Args) -> Result<(), Error> {
    let topology = Topology::new(&config.retry.delays, &config.topology);
    if args.print {
        let vhost = broker::vhost(&config.broker).map_err(app::Error::from)?;
        println!("{:#}", topology.definitions(&vhost));
        return Ok(());
    }
    config.require_broker()?;
    let address = Address::new(&config.broker, &config.tls).map_err(app::Error::from)?;
    let metrics = Metrics::default();
    let connection = Connection::open("topology", address, Arc::new(topology), &metrics).await;
    connection.map_err(app::Error::from)?.close().await;
    Ok(())
}
