//! The owner of a claim, as the column `claimed_by` stores it.

use std::fmt;

use uuid::Uuid;

use super::AttemptId;

/// The last owner of a job. Only this type writes and parses `claimed_by`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimant {
    /// An event, by its id: `event:ID`.
    Event(String),
    /// A message for one attempt: `JOB:RUN:ATTEMPT`.
    Message(AttemptId),
    /// An operator's request, which has no message: `operator:ID`.
    Operator(Uuid),
    /// An owner that another release recorded. No message of this release matches it.
    Unknown(String),
}

impl Claimant {
    /// Start of the text of every [`Claimant::Event`], and of no other.
    pub const EVENT_PREFIX: &'static str = "event:";
    const OPERATOR_PREFIX: &'static str = "operator:";

    /// Parses the text that `Display` writes.
    pub fn parse(text: &str) -> Self {
        if let Some(id) = text.strip_prefix(Self::EVENT_PREFIX) {
            return Self::Event(id.to_owned());
        }
        let parsed = match text.strip_prefix(Self::OPERATOR_PREFIX) {
            Some(id) => id.parse().ok().map(Self::Operator),
            None => AttemptId::parse(text).map(Self::Message),
        };
        parsed.unwrap_or_else(|| Self::Unknown(text.to_owned()))
    }
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(id) => write!(f, "{}{id}", Self::EVENT_PREFIX),
            Self::Message(attempt_id) => attempt_id.fmt(f),
            Self::Operator(id) => write!(f, "{}{id}", Self::OPERATOR_PREFIX),
            Self::Unknown(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimant_parses_its_own_text() {
        let attempt_id = AttemptId { job_id: Uuid::from_u128(1), run: 2, attempt: 3 };
        for claimant in [
            Claimant::Event("e-1".to_owned()),
            Claimant::Event("operator:1:2".to_owned()),
            Claimant::Event(String::new()),
            Claimant::Message(attempt_id),
            Claimant::Operator(Uuid::from_u128(9)),
            Claimant::Unknown("somebody".to_owned()),
        ] {
            let text = claimant.to_string();
            let is_event = matches!(claimant, Claimant::Event(_));
            assert_eq!(text.starts_with(Claimant::EVENT_PREFIX), is_event, "{text}");
            assert_eq!(Claimant::parse(&text), claimant);
        }
    }

    #[test]
    fn any_other_text_is_unknown() {
        for text in ["", "somebody", "operator:me", "1:2:3"] {
            assert_eq!(Claimant::parse(text), Claimant::Unknown(text.to_owned()));
        }
    }
}
