//! A verdict as answers show it.

use chrono::Utc;
use serde::Serialize;
use utoipa::ToSchema;

use crate::diagnosis::{Case, Cause, verdict};

/// What a failure means, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct VerdictView {
    /// Who or what has to change before a retry can help.
    cause: Cause,
    /// What it is, in words.
    meaning: &'static str,
    /// What to do next.
    next: &'static str,
    /// What a retry can no longer bring about.
    warning: Option<&'static str>,
}

impl VerdictView {
    pub(crate) fn of(case: &Case<'_>) -> Self {
        let verdict = verdict(case, Utc::now());
        Self {
            cause: verdict.cause,
            meaning: verdict.meaning,
            next: verdict.next,
            warning: verdict.warning,
        }
    }
}
