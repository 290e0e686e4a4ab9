//! Checks of what the service needs: the result of one check, with its fix.

use serde::Serialize;

use super::text_enum::text_enum;

text_enum! {
    /// How a check ended.
    CheckStatus {
        /// Nothing is wrong.
        Passed = "passed",
        /// The service works, but something should be changed.
        Warning = "warning",
        /// The service cannot work like this.
        Failed = "failed",
    }
}

/// The result of a check. A check with several findings has one result per finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// Name of the check, such as `database`.
    pub name: &'static str,
    /// How it ended.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do. `None` if the check passed.
    pub fix: Option<String>,
}

impl CheckResult {
    /// A check that passed, and what it found.
    pub fn passed(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: CheckStatus::Passed, detail: detail.into(), fix: None }
    }

    /// A finding that does not keep the service from working.
    pub fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let (detail, fix) = (detail.into(), Some(fix.into()));
        Self { name, status: CheckStatus::Warning, detail, fix }
    }

    /// A finding that keeps the service from working.
    pub fn failed(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        let (detail, fix) = (detail.into(), Some(fix.into()));
        Self { name, status: CheckStatus::Failed, detail, fix }
    }
}

impl std::fmt::Display for CheckResult {
    /// Writes the result as one line, without control characters of what a server answered.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let label = match self.status {
            CheckStatus::Passed => "ok",
            CheckStatus::Warning => "warn",
            CheckStatus::Failed => "FAIL",
        };
        let mut line = format!("{label:<5} {}", self.name);
        for (separator, text) in [(": ", Some(&self.detail)), ("; fix: ", self.fix.as_ref())] {
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                line.push_str(separator);
                line.push_str(text);
            }
        }
        f.write_str(&line.replace(char::is_control, " "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_line_with_its_fix() {
        let lines = [
            (CheckResult::passed("mode", ""), "ok    mode"),
            (CheckResult::passed("mode", "live"), "ok    mode: live"),
            (CheckResult::warning("clock", "a\nb", "wait"), "warn  clock: a b; fix: wait"),
            (CheckResult::failed("schema", "old", "migrate"), "FAIL  schema: old; fix: migrate"),
        ];
        for (result, line) in lines {
            assert_eq!(result.to_string(), line);
        }
    }

    #[test]
    fn a_result_as_json_has_all_fields() {
        let json = serde_json::to_string(&CheckResult::passed("mode", "live")).expect("JSON");
        assert_eq!(json, r#"{"name":"mode","status":"passed","detail":"live","fix":null}"#);
    }
}
