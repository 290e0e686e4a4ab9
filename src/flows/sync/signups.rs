//! The signups with messages in a batch.
//!
//! Transactions that change one signup wait for each other, and two jobs of one person are not sent
//! at the same time. So a message whose signup is in a batch of this process waits until that batch
//! has ended. Meanwhile, it keeps no batch from ending. Batches of other replicas are not known
//! here; PostgreSQL's locks and the claims keep them apart.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use uuid::Uuid;

/// The signups with messages in a batch, and the messages that wait for them: at most as many as
/// there are unacknowledged deliveries.
#[derive(Debug)]
pub(super) struct SignupsInFlight<M> {
    state: Mutex<SignupsState<M>>,
    /// Notified when messages become ready.
    became_ready: Notify,
}

#[derive(Debug)]
struct SignupsState<M> {
    /// The messages that wait for each signup that is in a batch or ready. The oldest is first.
    waiting: HashMap<Uuid, VecDeque<M>>,
    /// The signups that have left their batch and have messages.
    ready: VecDeque<Uuid>,
}

/// The signups of one batch. They leave it when this is dropped.
#[derive(Debug)]
pub(super) struct BatchSignups<M> {
    in_flight: Arc<SignupsInFlight<M>>,
    ids: Vec<Uuid>,
}

impl<M> SignupsInFlight<M> {
    pub(super) fn new() -> Arc<Self> {
        let state = SignupsState { waiting: HashMap::new(), ready: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), became_ready: Notify::new() })
    }

    /// A batch without signups.
    pub(super) fn batch(self: &Arc<Self>) -> BatchSignups<M> {
        BatchSignups { in_flight: self.clone(), ids: Vec::new() }
    }

    /// Removes and returns the messages of a signup that has left its batch. The caller adds them
    /// to a batch before it adds newer ones.
    pub(super) fn next_ready(&self) -> Option<VecDeque<M>> {
        let mut state = self.state();
        let signup_id = state.ready.pop_front()?;
        state.waiting.remove(&signup_id)
    }

    /// Waits until messages may be ready.
    pub(super) async fn ready(&self) {
        self.became_ready.notified().await;
    }

    /// Removes and returns all messages.
    pub(super) fn take(&self) -> Vec<M> {
        let mut state = self.state();
        state.ready.clear();
        std::mem::take(&mut state.waiting).into_values().flatten().collect()
    }

    fn state(&self) -> MutexGuard<'_, SignupsState<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M> BatchSignups<M> {
    /// Adds the signup of a message, and returns the message. If the signup is in a batch already,
    /// or has older messages, the message waits.
    pub(super) fn add(&mut self, signup_id: Uuid, message: M) -> Option<M> {
        match self.in_flight.state().waiting.entry(signup_id) {
            Entry::Vacant(vacant) => {
                vacant.insert(VecDeque::new());
            }
            Entry::Occupied(mut occupied) => {
                occupied.get_mut().push_back(message);
                return None;
            }
        }
        self.ids.push(signup_id);
        Some(message)
    }
}

impl<M> Drop for BatchSignups<M> {
    fn drop(&mut self) {
        let mut state = self.in_flight.state();
        for id in &self.ids {
            let messages = state.waiting.get(id);
            if messages.is_some_and(|messages| !messages.is_empty()) {
                state.ready.push_back(*id);
            } else {
                state.waiting.remove(id);
            }
        }
        if !state.ready.is_empty() {
            self.in_flight.became_ready.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use futures_util::FutureExt;

    use super::*;

    const SIGNUPS: [Uuid; 2] = [Uuid::from_u128(1), Uuid::from_u128(2)];

    #[test]
    fn a_message_waits_until_the_batch_with_its_signup_ends() {
        let in_flight = SignupsInFlight::new();
        let mut first = in_flight.batch();
        let mut second = in_flight.batch();
        assert_eq!(first.add(SIGNUPS[0], "first"), Some("first"));
        assert_eq!(second.add(SIGNUPS[0], "second"), None);
        assert_eq!(second.add(SIGNUPS[1], "other"), Some("other"));
        drop(second);
        assert_eq!(in_flight.next_ready(), None);
        assert!(in_flight.ready().now_or_never().is_none());
        drop(first);
        assert!(in_flight.ready().now_or_never().is_some());
        assert_eq!(in_flight.next_ready(), Some(["second"].into()));
        assert_eq!(in_flight.next_ready(), None);
        assert_eq!(in_flight.batch().add(SIGNUPS[0], "third"), Some("third"));
    }

    #[test]
    fn a_newer_message_does_not_overtake_one_that_is_ready() {
        let in_flight = SignupsInFlight::new();
        let mut first = in_flight.batch();
        first.add(SIGNUPS[0], "first");
        first.add(SIGNUPS[0], "older");
        drop(first);
        assert_eq!(in_flight.batch().add(SIGNUPS[0], "newer"), None);
        assert_eq!(in_flight.next_ready(), Some(["older", "newer"].into()));
    }

    #[test]
    fn no_message_is_left_when_all_are_taken() {
        let in_flight = SignupsInFlight::new();
        let mut batches = [in_flight.batch(), in_flight.batch()];
        for (batch, signup) in batches.iter_mut().zip(SIGNUPS) {
            batch.add(signup, signup);
            assert_eq!(batch.add(signup, signup), None);
        }
        let [first, second] = batches;
        drop(first);
        let mut taken = in_flight.take();
        taken.sort_unstable();
        assert_eq!(taken, SIGNUPS);
        drop(second);
        assert_eq!(in_flight.next_ready(), None);
    }

    /// The end of a batch and the arrival of another message of its signup, at the same time.
    #[test]
    fn no_message_waits_for_a_batch_that_has_ended() {
        for _ in 0..10_000 {
            let in_flight = SignupsInFlight::new();
            let mut first = in_flight.batch();
            first.add(SIGNUPS[0], "first");
            let mut second = in_flight.batch();
            let start = Barrier::new(2);
            let added = std::thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    drop(first);
                });
                start.wait();
                second.add(SIGNUPS[0], "second")
            });
            let ready = in_flight.next_ready();
            assert!(added.is_some() != ready.is_some(), "{added:?} {ready:?}");
        }
    }
}
