//! `customerio-sync serve`.

use super::Error;
use crate::{app::App, config::Config, runtime::shutdown};

pub(super) async fn run(config: Config) -> Result<(), Error> {
    let stop = async {
        shutdown::stop_signal()
            .await
            .map_err(|error| Error::Other(format!("waiting for signals: {error}")))
    };
    tokio::pin!(stop);
    // A signal during the start ends it: nothing was taken yet.
    let app = tokio::select! {
        app = App::start(config) => app?,
        stopped = &mut stop => return stopped,
    };
    stop.await?;
    tracing::info!("stopping");
    app.stop().await;
    tracing::info!("stopped");
    Ok(())
}
