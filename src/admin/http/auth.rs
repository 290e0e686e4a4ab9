//! Access tokens with a role, and sessions for browsers.
//!
//! Tokens are compared by digest, in constant time, and are never logged. A browser receives a
//! session that is signed with the token, so the browser does not store the token. Any replica with
//! the same tokens accepts the session, and removing the token ends it. Without tokens, only
//! loopback peers have access.

use std::{fmt, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Lifetime of a session.
pub(crate) const SESSION_LIFETIME: TimeDelta = TimeDelta::hours(12);

/// The access that a token grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads and changes.
    Operator,
}

impl Role {
    /// Its name in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// The sender of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Name of the token, as the audit log records it.
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// The configured tokens: `name:role:token` entries, separated by commas.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct AccessTokens(Vec<AccessToken>);

#[derive(Clone)]
struct AccessToken {
    name: String,
    role: Role,
    digest: [u8; 32],
}

impl fmt::Debug for AccessTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|token| (&token.name, token.role))).finish()
    }
}

/// Why a list of tokens can't be parsed. It never contains a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "entry {entry}: {problem}; expected name:role:token, with a name of letters, digits, - or _, \
        and the role viewer or operator"
)]
pub struct AccessTokensError {
    entry: usize,
    problem: &'static str,
}

impl FromStr for AccessTokens {
    type Err = AccessTokensError;

    fn from_str(text: &str) -> Result<Self, AccessTokensError> {
        let mut tokens: Vec<AccessToken> = Vec::new();
        for (index, entry) in text.split(',').map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            let wrong = |problem| AccessTokensError { entry: index + 1, problem };
            let mut parts = entry.splitn(3, ':');
            let (Some(name), Some(role), Some(secret)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(wrong("fewer than three parts"));
            };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || !name.chars().all(is_plain) {
                return Err(wrong("invalid name"));
            }
            if tokens.iter().any(|token| token.name == name) {
                return Err(wrong("duplicate name"));
            }
            if secret.is_empty() {
                return Err(wrong("empty token"));
            }
            let role = match role {
                "viewer" => Role::Viewer,
                "operator" => Role::Operator,
                _ => return Err(wrong("unknown role")),
            };
            tokens.push(AccessToken {
                name: name.to_owned(),
                role,
                digest: Sha256::digest(secret.as_bytes()).into(),
            });
        }
        Ok(Self(tokens))
    }
}

impl TryFrom<String> for AccessTokens {
    type Error = AccessTokensError;

    fn try_from(text: String) -> Result<Self, AccessTokensError> {
        text.parse()
    }
}

impl AccessToken {
    fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), role: self.role }
    }

    fn signature(&self, claims: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.digest).expect("HMAC accepts keys of any length");
        mac.update(claims.as_bytes());
        mac
    }
}

impl AccessTokens {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the owner of a token. Compares all tokens, so that the duration reveals nothing.
    pub(crate) fn identify(&self, presented: &str) -> Option<Identity> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.digest.ct_eq(&digest)) {
                found = Some(token);
            }
        }
        found.map(AccessToken::identity)
    }

    /// Creates a session for the owner of the token `name`: `name.expiry.signature`.
    pub(crate) fn session(&self, name: &str, now: DateTime<Utc>) -> Option<String> {
        let token = self.0.iter().find(|token| token.name == name)?;
        let claims = format!("{name}.{}", (now + SESSION_LIFETIME).timestamp());
        let signature = token.signature(&claims).finalize().into_bytes();
        Some(format!("{claims}.{}", hex(&signature)))
    }

    /// Returns the owner of a session, unless it has expired.
    pub(crate) fn identify_session(&self, session: &str, now: DateTime<Utc>) -> Option<Identity> {
        let (claims, signature) = session.rsplit_once('.')?;
        let (name, expiry) = claims.split_once('.')?;
        let token = self.0.iter().find(|token| token.name == name)?;
        token.signature(claims).verify_slice(&unhex(signature)?).ok()?;
        let expiry: i64 = expiry.parse().ok()?;
        (now.timestamp() < expiry).then(|| token.identity())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> AccessTokens {
        "ann:operator:s3cret:with:colons, ben:viewer:other".parse().expect("two tokens")
    }

    #[test]
    fn a_token_identifies_its_owner() {
        let tokens = tokens();
        let ann = tokens.identify("s3cret:with:colons").expect("known");
        assert_eq!((ann.name.as_str(), ann.role), ("ann", Role::Operator));
        assert_eq!(tokens.identify("other").expect("known").role, Role::Viewer);
        assert_eq!(tokens.identify("s3cret"), None);
        assert_eq!(tokens.identify(""), None);
        assert!("".parse::<AccessTokens>().expect("none").is_empty());
    }

    #[test]
    fn the_error_of_a_malformed_list_contains_no_token() {
        for (text, problem) in [
            ("ann:operator", "fewer than three parts"),
            ("ann:operator:hush,ann:viewer:x", "entry 2: duplicate name"),
            ("a n:operator:hush", "invalid name"),
            ("ann:owner:hush", "unknown role"),
            ("ann:operator:", "empty token"),
        ] {
            let error = text.parse::<AccessTokens>().expect_err(text).to_string();
            assert!(error.contains(problem) && !error.contains("hush"), "{error}");
        }
        assert!(!format!("{:?}", tokens()).contains("s3cret"));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the session starts now")]
    fn a_session_identifies_its_owner_until_it_expires_and_cannot_be_forged() {
        let (tokens, now) = (tokens(), Utc::now());
        let session = tokens.session("ben", now).expect("ben has a token");
        assert_eq!(tokens.identify_session(&session, now).expect("known").name, "ben");
        assert_eq!(tokens.identify_session(&session, now + SESSION_LIFETIME), None);
        assert_eq!(tokens.identify_session(&session.replace("ben", "ann"), now), None);
        let rotated: AccessTokens = "ben:viewer:new".parse().expect("one token");
        assert_eq!(rotated.identify_session(&session, now), None, "a new token ends the session");
        assert_eq!(tokens.identify_session("ben.99999999999.", now), None);
        assert_eq!(tokens.identify_session("nonsense", now), None);
        assert!(!session.contains("other"), "the session does not contain the token");
    }
}
