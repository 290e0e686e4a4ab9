//! `customerio-sync migrate`.

use super::Error;
use crate::{app, config::Config, ledger::Ledger};

pub(super) async fn run(config: &Config) -> Result<(), Error> {
    config.require_database()?;
    let max_attempts = config.retry.delays.max_attempts();
    let ledger =
        Ledger::new(&config.database, &config.tls, max_attempts).map_err(app::Error::from)?;
    ledger.migrate().await.map_err(app::Error::from)?;
    ledger.close().await;
    Ok(())
}
