//! Messages that must follow a committed change, as the ledger hands them to the task that
//! publishes them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::mpsc;
use uuid::Uuid;

use super::JobReport;
use crate::runtime::{text_enum::text_enum, trace::TraceSpan};

text_enum! {
    /// The kind of messages in a row of the outbox.
    MessageKind {
        /// Messages that make jobs wait on a delay tier.
        Retries = "retries",
        /// Messages that park failed jobs.
        Failures = "failures",
        /// Outcomes.
        Outcomes = "outcomes",
    }
}

/// A row of the outbox: messages of one kind that are not confirmed yet.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Its id.
    pub id: i64,
    /// The kind of its messages.
    pub kind: MessageKind,
    /// What the messages report, one each. A report is missing if its history has been deleted.
    pub reports: Vec<JobReport>,
    /// The spans of the messages that led to the reports, by job. A row that was taken over has
    /// none.
    pub spans: HashMap<Uuid, TraceSpan>,
}

/// Maximum rows that wait for the task that publishes them. Further ones are taken over when they
/// are due.
const ROWS_MAX: usize = 1024;

/// Hands rows of the outbox to the task that publishes them, until it is closed.
#[derive(Debug)]
pub struct OutboxSender(Mutex<Option<mpsc::Sender<OutboxRow>>>);

impl OutboxSender {
    /// Creates a sender, and the receiver for the task that publishes the rows.
    pub fn channel() -> (Self, mpsc::Receiver<OutboxRow>) {
        let (sender, receiver) = mpsc::channel(ROWS_MAX);
        (Self(Mutex::new(Some(sender))), receiver)
    }

    /// Hands over rows that were committed. One that is not accepted is taken over when it is due.
    pub fn send(&self, rows: Vec<OutboxRow>) {
        if let Some(sender) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            for row in rows {
                let _ = sender.try_send(row);
            }
        }
    }

    /// Closes the channel: no further row follows.
    pub fn close(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
