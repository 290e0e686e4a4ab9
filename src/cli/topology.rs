//! `customerio-sync topology`.

use std::sync::Arc;

use super::Error;
use crate::{
    app,
    broker::{self, Link, Topology},
    config::Config,
    runtime::metrics::Metrics,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write a RabbitMQ definitions file to standard output and declare nothing.
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
    let link =
        Link::open("topology", &config.broker, Arc::new(topology), &Metrics::default()).await;
    link.map_err(app::Error::from)?.close().await;
    Ok(())
}
