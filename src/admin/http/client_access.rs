//! The access of a WebSocket client: when it ends, and what the client may see of a frame.
//!
//! A request is authenticated once; a WebSocket has to end when its token is removed, or when its
//! session is ended or expires.

#![expect(clippy::disallowed_methods, reason = "an edge: a session expires while it is used")]

use std::{future::pending, time::Duration};

use bytes::Bytes;
use chrono::Utc;

use crate::admin::{
    http::{
        auth::{Credential, Identity},
        mask::mask_frame,
    },
    state::AppState,
};

/// The access of one WebSocket client.
#[derive(Debug)]
pub(crate) struct ClientAccess {
    state: AppState,
    identity: Identity,
}

impl ClientAccess {
    pub(crate) fn new(state: AppState, identity: Identity) -> Self {
        Self { state, identity }
    }

    /// Returns the frame as the client may see it, or `None` if it may not see it.
    pub(crate) fn frame(&self, frame: Bytes) -> Option<Bytes> {
        if self.identity.is_masked(false) { mask_frame(&frame) } else { Some(frame) }
    }

    /// Waits until the access ends, and returns the reason in words.
    pub(crate) async fn ended(&self) -> &'static str {
        let (mut tokens, mut sessions) = (self.state.tokens.watch(), self.state.sessions.watch());
        loop {
            // Changes count as seen before they are checked, so that none is missed.
            sessions.mark_unchanged();
            if !tokens.borrow_and_update().grant(&self.identity) {
                return "the token was removed or changed";
            }
            let left = match self.session_left() {
                Ok(left) => left,
                Err(reason) => return reason,
            };
            let expiry = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = tokens.changed() => {}
                _ = sessions.changed() => {}
                () = expiry => {}
            }
        }
    }

    /// Time until the session expires; `None` without a session.
    fn session_left(&self) -> Result<Option<Duration>, &'static str> {
        let Credential::Session(session) = &self.identity.credential else { return Ok(None) };
        if self.state.sessions.is_ended(session.id) {
            return Err("the session was ended");
        }
        let left = (session.expires_at - Utc::now()).to_std();
        left.ok().filter(|left| !left.is_zero()).map(Some).ok_or("the session has expired")
    }
}
