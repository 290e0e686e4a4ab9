//! Access tokens with a role, and sessions for browsers.
//!
//! Tokens are compared by digest, in constant time, and are never logged. A browser receives a
//! session, so it does not store the token. The session is signed with a key that is derived from
//! the token and from a salt that all replicas share, so a leaked cookie can't be used to guess the
//! token. Changing or removing the token ends its sessions. Without tokens, only local requests
//! have access.

use std::{fmt, str::FromStr, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use uuid::Uuid;

use crate::ledger::SessionSalt;

/// Lifetime of a session.
pub(crate) const SESSION_LIFETIME: TimeDelta = TimeDelta::hours(12);
/// Minimum characters of a token.
const TOKEN_CHARS_MIN: usize = 16;

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
    pub(crate) credential: Credential,
}

/// How a request was authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// There are no tokens, and the request is local.
    Local,
    /// A token in the header `Authorization`.
    Token(TokenDigest),
    /// The session cookie of a browser.
    Session(BrowserSession),
}

/// A session that a cookie contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrowserSession {
    /// The token that it was created with.
    token: TokenDigest,
    pub(crate) id: Uuid,
    pub(crate) expires_at: DateTime<Utc>,
}

/// The SHA-256 digest of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenDigest([u8; 32]);

impl TokenDigest {
    fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest")
    }
}

impl Identity {
    /// Whether personal data is masked in responses to this sender. A viewer never sees it. To a
    /// browser with a session it is masked until it is revealed. Other operators may request masks.
    pub(crate) fn is_masked(&self, is_requested: bool) -> bool {
        match (&self.credential, self.role) {
            (_, Role::Viewer) | (Credential::Session(_), Role::Operator) => true,
            (Credential::Local | Credential::Token(_), Role::Operator) => is_requested,
        }
    }
}

/// The configured tokens: `name:role:token` entries, separated by commas.
#[derive(Clone, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct AccessTokens(Vec<AccessToken>);

#[derive(Clone)]
struct AccessToken {
    name: String,
    role: Role,
    digest: TokenDigest,
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
        the role viewer or operator, and a token of at least {min} characters",
    min = TOKEN_CHARS_MIN
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
            let role = match role {
                "viewer" => Role::Viewer,
                "operator" => Role::Operator,
                _ => return Err(wrong("unknown role")),
            };
            if secret.chars().count() < TOKEN_CHARS_MIN {
                return Err(wrong("the token is too short"));
            }
            let digest = TokenDigest::of(secret);
            tokens.push(AccessToken { name: name.to_owned(), role, digest });
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
    fn identity(&self, credential: Credential) -> Identity {
        Identity { name: self.name.clone(), role: self.role, credential }
    }

    /// The signature of the claims of a session. Its key depends on the role as well, so that a
    /// token with another role has no sessions yet.
    fn signature(&self, claims: &str, salt: &SessionSalt) -> Hmac<Sha256> {
        let key = keyed(salt.as_bytes())
            .chain_update("customerio-sync session")
            .chain_update(self.role.as_str())
            .chain_update(self.digest.0)
            .finalize()
            .into_bytes();
        keyed(&key).chain_update(claims)
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key).expect("HMAC accepts keys of any length")
}

impl AccessTokens {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the owner of a token. Compares all tokens, so that the duration reveals nothing.
    pub(crate) fn identify(&self, presented: &str) -> Option<Identity> {
        let digest = TokenDigest::of(presented);
        let mut found = None;
        for token in &self.0 {
            if bool::from(token.digest.0.ct_eq(&digest.0)) {
                found = Some(token);
            }
        }
        found.map(|token| token.identity(Credential::Token(token.digest)))
    }

    /// Creates a session with the id `id` for the owner of the token `name`:
    /// `name.id.expiry.signature`.
    pub(crate) fn session(
        &self,
        name: &str,
        id: Uuid,
        salt: &SessionSalt,
        now: DateTime<Utc>,
    ) -> Option<String> {
        let token = self.0.iter().find(|token| token.name == name)?;
        let expiry = (now + SESSION_LIFETIME).timestamp();
        let claims = format!("{name}.{}.{expiry}", id.simple());
        let signature = token.signature(&claims, salt).finalize().into_bytes();
        Some(format!("{claims}.{}", hex(&signature)))
    }

    /// Returns the owner of a session, unless it has expired. The session may have been ended.
    pub(crate) fn identify_session(
        &self,
        session: &str,
        salt: &SessionSalt,
        now: DateTime<Utc>,
    ) -> Option<Identity> {
        let (claims, signature) = session.rsplit_once('.')?;
        let mut parts = claims.split('.');
        let (name, id, expiry) = (parts.next()?, parts.next()?, parts.next()?);
        let token = self.0.iter().find(|token| token.name == name)?;
        token.signature(claims, salt).verify_slice(&unhex(signature)?).ok()?;
        let expires_at = DateTime::from_timestamp(expiry.parse().ok()?, 0)?;
        let session = BrowserSession { token: token.digest, id: id.parse().ok()?, expires_at };
        (now < expires_at).then(|| token.identity(Credential::Session(session)))
    }

    /// Whether there is a token with this name, role and digest.
    fn contains(&self, identity: &Identity, digest: TokenDigest) -> bool {
        self.0.iter().any(|token| {
            token.name == identity.name && token.role == identity.role && token.digest == digest
        })
    }
}

/// The tokens of the running service, which can be replaced. Cheap to clone; all clones share the
/// tokens.
#[derive(Debug, Clone)]
pub struct LiveTokens(Arc<watch::Sender<Arc<CurrentTokens>>>);

/// The tokens at one moment.
#[derive(Debug)]
pub(crate) struct CurrentTokens {
    pub(crate) tokens: AccessTokens,
    /// Whether a request needs a token. Once there were tokens, an empty list gives nobody access.
    pub(crate) are_required: bool,
}

impl LiveTokens {
    /// Creates the handle. Without tokens, local requests have access.
    pub fn new(tokens: AccessTokens) -> Self {
        let are_required = !tokens.is_empty();
        Self(Arc::new(watch::Sender::new(Arc::new(CurrentTokens { tokens, are_required }))))
    }

    /// Replaces the tokens at once. The sessions and WebSockets of tokens that are removed, or that
    /// have another name, role or text, end.
    pub fn replace(&self, tokens: AccessTokens) {
        self.0.send_modify(|current| {
            let are_required = current.are_required || !tokens.is_empty();
            *current = Arc::new(CurrentTokens { tokens, are_required });
        });
    }

    pub(crate) fn current(&self) -> Arc<CurrentTokens> {
        self.0.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<CurrentTokens>> {
        self.0.subscribe()
    }
}

impl CurrentTokens {
    /// Whether what an earlier request was authenticated with still gives access. The session of a
    /// browser may have been ended.
    pub(crate) fn grant(&self, identity: &Identity) -> bool {
        match &identity.credential {
            Credential::Local => !self.are_required,
            Credential::Token(digest) => self.tokens.contains(identity, *digest),
            Credential::Session(session) => self.tokens.contains(identity, session.token),
        }
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

    const ANN: &str = "s3cret:with:colons:of-ann";
    const BEN: &str = "another-s3cret-of-ben";

    fn tokens() -> AccessTokens {
        format!("ann:operator:{ANN}, ben:viewer:{BEN}").parse().expect("two tokens")
    }

    fn salt(byte: u8) -> SessionSalt {
        vec![byte; 32].into()
    }

    #[test]
    fn a_token_identifies_its_owner() {
        let tokens = tokens();
        let ann = tokens.identify(ANN).expect("known");
        assert_eq!((ann.name.as_str(), ann.role), ("ann", Role::Operator));
        assert_eq!(tokens.identify(BEN).expect("known").role, Role::Viewer);
        assert_eq!(tokens.identify("s3cret"), None);
        assert_eq!(tokens.identify(""), None);
        assert!("".parse::<AccessTokens>().expect("none").is_empty());
    }

    #[test]
    fn the_error_of_a_malformed_list_contains_no_token() {
        for (text, problem) in [
            ("ann:operator", "fewer than three parts"),
            ("ann:operator:hush-hush-hush-hush,ann:viewer:hush", "entry 2: duplicate name"),
            ("a n:operator:hush-hush-hush-hush", "invalid name"),
            ("ann:owner:hush-hush-hush-hush", "unknown role"),
            ("ann:operator:", "entry 1: the token is too short"),
            ("ann:operator:hush-hush-hush-", "entry 1: the token is too short"),
        ] {
            let error = text.parse::<AccessTokens>().expect_err(text).to_string();
            assert!(error.contains(problem) && !error.contains("hush"), "{error}");
        }
        assert!("ann:operator:hush-hush-hush-h".parse::<AccessTokens>().is_ok(), "16 characters");
        assert!(!format!("{:?}", tokens()).contains("s3cret"));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the session starts now")]
    fn a_session_identifies_its_owner_until_it_expires_and_cannot_be_forged() {
        let (tokens, now, id) = (tokens(), Utc::now(), Uuid::new_v4());
        let session = tokens.session("ben", id, &salt(1), now).expect("ben has a token");
        let ben = tokens.identify_session(&session, &salt(1), now).expect("known");
        assert_eq!((ben.name.as_str(), ben.role), ("ben", Role::Viewer));
        assert!(matches!(ben.credential, Credential::Session(session) if session.id == id));
        let identify = |session: &str, now| tokens.identify_session(session, &salt(1), now);
        assert_eq!(identify(&session, now + SESSION_LIFETIME), None);
        assert_eq!(identify(&session.replace("ben", "ann"), now), None);
        assert_eq!(tokens.identify_session(&session, &salt(2), now), None, "another salt");
        for changed in ["ben:viewer:a-new-s3cret-of-ben", "ben:operator:another-s3cret-of-ben"] {
            let changed: AccessTokens = changed.parse().expect("one token");
            assert_eq!(changed.identify_session(&session, &salt(1), now), None, "it has changed");
        }
        for nonsense in ["ben.99999999999.", "ben.1.99999999999.", "nonsense", ""] {
            assert_eq!(identify(nonsense, now), None, "{nonsense}");
        }
        assert!(!session.contains(BEN), "the session does not contain the token");
    }

    #[test]
    fn replaced_tokens_lose_their_access_and_the_others_keep_it() {
        let live = LiveTokens::new(tokens());
        let identify = |token| live.current().tokens.identify(token).expect("known");
        let (ann, ben) = (identify(ANN), identify(BEN));
        live.clone().replace(format!("ann:operator:{ANN}").parse().expect("one token"));
        assert!(live.current().grant(&ann) && !live.current().grant(&ben));
        live.replace(format!("ann:viewer:{ANN}").parse().expect("one token"));
        assert!(!live.current().grant(&ann), "another role");
        live.replace(AccessTokens::default());
        assert!(live.current().are_required, "an empty list does not open the service");

        let open = LiveTokens::new(AccessTokens::default());
        let local = Identity {
            name: "local".to_owned(),
            role: Role::Operator,
            credential: Credential::Local,
        };
        assert!(open.current().grant(&local));
        open.replace(tokens());
        assert!(!open.current().grant(&local), "now a token is required");
    }

    #[test]
    fn personal_data_is_masked_for_viewers_and_browsers() {
        let ann = tokens().identify(ANN).expect("known");
        let ben = tokens().identify(BEN).expect("known");
        assert!(ann.is_masked(true) && !ann.is_masked(false));
        assert!(ben.is_masked(true) && ben.is_masked(false));
        let session = BrowserSession {
            token: TokenDigest::of(ANN),
            id: Uuid::nil(),
            expires_at: DateTime::UNIX_EPOCH,
        };
        let browser = Identity { credential: Credential::Session(session), ..ann };
        assert!(browser.is_masked(false));
    }
}
