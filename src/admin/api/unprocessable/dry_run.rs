//! The preview of an action on all unprocessable messages of a selection.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ledger::MessagePreview;

/// The preview.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageDryRun {
    /// Always true.
    dry_run: bool,
    /// Messages that would be replayed or dismissed.
    eligible: i64,
    /// Matching messages that can't be replayed, because they came from no work queue. Always 0 for
    /// a dismissal.
    not_replayable: i64,
    /// Ids of eligible messages, oldest first, at most 10.
    sample_ids: Vec<Uuid>,
}

impl From<MessagePreview> for MessageDryRun {
    fn from(preview: MessagePreview) -> Self {
        Self {
            dry_run: true,
            eligible: preview.eligible,
            not_replayable: preview.from_elsewhere,
            sample_ids: preview.sample,
        }
    }
}
