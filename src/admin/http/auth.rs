//! Who may do what: tokens with a role, and sessions for browsers.
//!
//! A token is compared in constant time, by its digest, and is never logged. A browser gets a
//! session, signed with the token, so that the token itself is kept nowhere; any replica with the
//! same tokens knows it, and taking the token away ends it. Without any token, only loopback peers
//! are answered.

use std::{fmt, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// How long a session lasts.
pub(crate) const SESSION: TimeDelta = TimeDelta::hours(12);

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Read.
    Viewer,
    /// Read and act.
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

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The token's name; it is written into the audit log.
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// The tokens of the settings: `name:role:token` entries, comma separated.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct Tokens(Vec<Token>);

#[derive(Clone)]
struct Token {
    name: String,
    role: Role,
    digest: [u8; 32],
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|token| (&token.name, token.role))).finish()
    }
}

/// Why a list of tokens can't be read. It never holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "entry {entry}: {problem}; expected name:role:token with a name of letters, digits, - or _, \
        and the role viewer or operator"
)]
pub struct TokensError {
    entry: usize,
    problem: &'static str,
}

impl FromStr for Tokens {
    type Err = TokensError;

    fn from_str(text: &str) -> Result<Self, TokensError> {
        let mut tokens: Vec<Token> = Vec::new();
        for (index, entry) in text.split(',').map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            let wrong = |problem| TokensError { entry: index + 1, problem };
            let mut parts = entry.splitn(3, ':');
            let (Some(name), Some(role), Some(secret)) = (parts.next(), parts.next(), parts.next())
            else {
                return Err(wrong("it does not have three parts"));
            };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || !name.chars().all(is_plain) {
                return Err(wrong("its name is not allowed"));
            }
            if tokens.iter().any(|token| token.name == name) {
                return Err(wrong("its name is taken"));
            }
            if secret.is_empty() {
                return Err(wrong("its token is empty"));
            }
            let role = match role {
                "viewer" => Role::Viewer,
                "operator" => Role::Operator,
                _ => return Err(wrong("its role is unknown")),
            };
            tokens.push(Token {
                name: name.to_owned(),
                role,
                digest: Sha256::digest(secret.as_bytes()).into(),
            });
        }
        Ok(Self(tokens))
    }
}

impl TryFrom<String> for Tokens {
    type Error = TokensError;

    fn try_from(text: String) -> Result<Self, TokensError> {
        text.parse()
    }
}

impl Token {
    fn identity(&self) -> Identity {
        Identity { name: self.name.clone(), role: self.role }
    }

    fn signature(&self, claims: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.digest).expect("a key may have any length");
        mac.update(claims.as_bytes());
        mac
    }
}

impl Tokens {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token this is. All are compared, so that the time tells nothing.
    pub(crate) fn identify(&self, presented: &str) -> Option<Identity> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.digest.ct_eq(&digest)) {
                found = Some(token);
            }
        }
        found.map(Token::identity)
    }

    /// A session for the holder of `name`'s token: `name.expiry.signature`.
    pub(crate) fn session(&self, name: &str, now: DateTime<Utc>) -> Option<String> {
        let token = self.0.iter().find(|token| token.name == name)?;
        let claims = format!("{name}.{}", (now + SESSION).timestamp());
        let signature = token.signature(&claims).finalize().into_bytes();
        Some(format!("{claims}.{}", hex(&signature)))
    }

    /// Whose session this is, unless it is over.
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

    fn tokens() -> Tokens {
        "ann:operator:s3cret:with:colons, ben:viewer:other".parse().expect("two tokens")
    }

    #[test]
    fn a_token_tells_who_asks() {
        let tokens = tokens();
        let ann = tokens.identify("s3cret:with:colons").expect("known");
        assert_eq!((ann.name.as_str(), ann.role), ("ann", Role::Operator));
        assert_eq!(tokens.identify("other").expect("known").role, Role::Viewer);
        assert_eq!(tokens.identify("s3cret"), None);
        assert_eq!(tokens.identify(""), None);
        assert!("".parse::<Tokens>().expect("none").is_empty());
    }

    #[test]
    fn a_bad_list_is_told_without_its_tokens() {
        for (text, problem) in [
            ("ann:operator", "does not have three parts"),
            ("ann:operator:hush,ann:viewer:x", "entry 2: its name is taken"),
            ("a n:operator:hush", "its name is not allowed"),
            ("ann:owner:hush", "its role is unknown"),
            ("ann:operator:", "its token is empty"),
        ] {
            let error = text.parse::<Tokens>().expect_err(text).to_string();
            assert!(error.contains(problem) && !error.contains("hush"), "{error}");
        }
        assert!(!format!("{:?}", tokens()).contains("s3cret"));
    }

    #[test]
    fn a_session_is_its_holders_until_it_is_over_and_cannot_be_made_up() {
        let (tokens, now) = (tokens(), Utc::now());
        let session = tokens.session("ben", now).expect("ben has a token");
        assert_eq!(tokens.identify_session(&session, now).expect("known").name, "ben");
        assert_eq!(tokens.identify_session(&session, now + SESSION), None);
        assert_eq!(tokens.identify_session(&session.replace("ben", "ann"), now), None);
        let rotated: Tokens = "ben:viewer:new".parse().expect("one token");
        assert_eq!(rotated.identify_session(&session, now), None, "a new token ends it");
        assert_eq!(tokens.identify_session("ben.99999999999.", now), None);
        assert_eq!(tokens.identify_session("nonsense", now), None);
        assert!(!session.contains("other"), "the token is not in it");
    }
}
