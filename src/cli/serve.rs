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
    // A signal during startup ends the program at once: no message has been consumed yet.
    let mut app = tokio::select! {
        app = App::start(config) => app?,
        stopped = &mut stop => return stopped,
    };
    let failed = tokio::select! {
        stopped = stop => stopped.err(),
        task = app.task_ended() => {
            tracing::error!(task, "a task ended unexpectedly, stopping the service");
            Some(Error::Other(format!("the task {task:?} ended unexpectedly")))
        }
    };
    tracing::info!("shutdown started");
    app.stop().await;
    tracing::info!("shutdown complete");
    failed.map_or(Ok(()), Err)
}
