//! Publishing for a request: it waits for the confirm for a while, and the publish goes on without
//! it.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    broker::{Message, Publisher},
    job::Job,
};

/// How long a request waits for a confirm.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far a publish has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// The broker has confirmed it.
    Confirmed,
    /// It is being tried.
    NotYet,
}

/// Publishes the messages of jobs that were started afresh. The ledger has them, so they are tried
/// on until the broker takes them, whoever waits.
pub(crate) async fn publish_jobs(publisher: &Publisher, jobs: &[Job]) -> Published {
    let messages: Vec<_> = jobs.iter().map(Message::job).collect();
    let publisher = publisher.clone();
    let publishing = tokio::spawn(async move {
        join_all(messages.iter().map(|message| publisher.publish(message))).await;
    });
    match tokio::time::timeout(PATIENCE, publishing).await {
        Ok(Ok(())) => Published::Confirmed,
        Ok(Err(_)) | Err(_) => Published::NotYet,
    }
}

/// Publishes one message, and gives up when the confirm does not come: whether it arrived is not
/// known then.
pub(crate) async fn publish_once(publisher: &Publisher, message: &Message) -> Published {
    match tokio::time::timeout(PATIENCE, publisher.publish(message)).await {
        Ok(()) => Published::Confirmed,
        Err(_) => Published::NotYet,
    }
}
