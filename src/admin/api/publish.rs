//! Publishing for a request, which waits a limited time for the confirm.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    broker::{Message, Publisher},
    job::Job,
};

/// Maximum time that a request waits for a confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(5);

/// The state of a publish when its request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PublishStatus {
    /// RabbitMQ confirmed it.
    Confirmed,
    /// It is not confirmed yet.
    Pending,
}

/// Publishes the messages of restarted jobs. The restart is recorded, so publishing continues after
/// the timeout, until RabbitMQ confirms.
pub(crate) async fn publish_jobs(publisher: &Publisher, jobs: &[Job]) -> PublishStatus {
    let messages: Vec<_> = jobs.iter().map(Message::job).collect();
    let publisher = publisher.clone();
    let publishing = tokio::spawn(async move {
        join_all(messages.iter().map(|message| publisher.publish(message))).await;
    });
    match tokio::time::timeout(CONFIRM_TIMEOUT, publishing).await {
        Ok(Ok(())) => PublishStatus::Confirmed,
        Ok(Err(_)) | Err(_) => PublishStatus::Pending,
    }
}

/// Publishes one message, and stops at the timeout. It is then unknown whether the message arrived.
pub(crate) async fn publish_once(publisher: &Publisher, message: &Message) -> PublishStatus {
    match tokio::time::timeout(CONFIRM_TIMEOUT, publisher.publish(message)).await {
        Ok(()) => PublishStatus::Confirmed,
        Err(_) => PublishStatus::Pending,
    }
}
