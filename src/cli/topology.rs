//! `customerio-sync topology`.

use std::sync::Arc;

use super::Error;
use crate::{
    app,
    broker::{self, Connection, Topology},
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
    let connection =
        Connection::open("topology", &config.broker, Arc::new(topology), &Metrics::default()).await;
    connection.map_err(app::Error::from)?.close().await;
    Ok(())
}
