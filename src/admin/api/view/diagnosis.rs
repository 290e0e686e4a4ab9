//! A diagnosis in a response.

#![expect(
    clippy::disallowed_methods,
    reason = "an edge: the age of an event is relative to the response"
)]

use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use crate::diagnosis::{CauseCategory, FailureFacts, diagnose};

/// The meaning of a failure, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct DiagnosisView {
    /// What has to change before a retry can succeed.
    cause: CauseCategory,
    /// The failure, in words.
    meaning: &'static str,
    /// The next step.
    next: &'static str,
    /// An effect that a retry can no longer have.
    warning: Option<&'static str>,
}

impl DiagnosisView {
    pub(crate) fn of(facts: &FailureFacts) -> Self {
        let diagnosis = diagnose(facts, Utc::now());
        Self {
            cause: diagnosis.category,
            meaning: diagnosis.meaning,
            next: diagnosis.next,
            warning: diagnosis.warning,
        }
    }
}
