//! People with a call in flight.
//!
//! Two jobs of one person state values of the same attributes, and Customer.io does not document
//! in which order it processes the operations of a call, or of concurrent calls. So they travel in
//! different calls, the second after the first is answered. Of the jobs that one batch pushes, the
//! older goes first; jobs of different batches keep their times, but not their order.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The keys under which Customer.io may know a person: two people with a common key may be the
/// same one. Hashes, since a collision only delays a job.
pub(super) type PersonKeys = [u64; 2];

/// The keys of a person with this identifier and this e-mail address. Addresses compare without
/// case.
pub(super) fn person_keys(key: &str, contact_id: &str, email: &str) -> PersonKeys {
    let hash = |key: &str, value: &str| {
        let mut hasher = DefaultHasher::new();
        (key, value.to_lowercase()).hash(&mut hasher);
        hasher.finish()
    };
    [hash(key, contact_id), hash("email", email)]
}

/// The people with a call in flight: at most one per job of the batches in flight.
#[derive(Debug, Default)]
pub(super) struct PeopleInFlight {
    keys: Mutex<HashSet<u64>>,
    released: Notify,
}

/// A person reserved for a call. Dropping it ends the reservation.
pub(super) struct Reservation<'a> {
    people: &'a PeopleInFlight,
    keys: PersonKeys,
}

impl PeopleInFlight {
    /// Waits until one of the jobs can be sent, and reserves the people of those that can. Returns
    /// these jobs, and the ones that have to wait. A job waits for all earlier ones of its person.
    pub(super) async fn reserve<T>(
        &self,
        jobs: Vec<T>,
        keys_of: impl Fn(&T) -> PersonKeys,
    ) -> (Vec<(T, Reservation<'_>)>, Vec<T>) {
        let mut waiting = jobs;
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            // Reservations that end from here on wake it.
            released.as_mut().enable();
            let (ready, rest) = self.try_reserve(waiting, &keys_of);
            if !ready.is_empty() || rest.is_empty() {
                return (ready, rest);
            }
            waiting = rest;
            released.await;
        }
    }

    fn try_reserve<T>(
        &self,
        jobs: Vec<T>,
        keys_of: &impl Fn(&T) -> PersonKeys,
    ) -> (Vec<(T, Reservation<'_>)>, Vec<T>) {
        let (mut ready, mut rest) = (Vec::with_capacity(jobs.len()), Vec::new());
        let mut in_flight = self.keys();
        let mut awaited = HashSet::new();
        for job in jobs {
            let keys = keys_of(&job);
            if keys.iter().any(|key| in_flight.contains(key) || awaited.contains(key)) {
                awaited.extend(keys);
                rest.push(job);
            } else {
                in_flight.extend(keys);
                ready.push((job, Reservation { people: self, keys }));
            }
        }
        (ready, rest)
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.people.keys();
        for key in &self.keys {
            in_flight.remove(key);
        }
        drop(in_flight);
        self.people.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn job(name: &'static str, id: &str, email: &str) -> (&'static str, PersonKeys) {
        (name, person_keys("id", id, email))
    }

    fn names<T>(jobs: &[T], name: impl Fn(&T) -> &'static str) -> Vec<&'static str> {
        jobs.iter().map(name).collect()
    }

    #[tokio::test]
    async fn jobs_of_one_person_are_sent_one_after_the_other() {
        let people = PeopleInFlight::default();
        let jobs = vec![
            job("first", "1", "a@example.com"),
            job("same id", "1", "b@example.com"),
            job("same address as one that waits", "2", "B@example.com"),
            job("another", "3", "c@example.com"),
        ];
        let (ready, rest) = people.reserve(jobs, |job| job.1).await;
        assert_eq!(names(&ready, |(job, _)| job.0), ["first", "another"]);
        assert_eq!(names(&rest, |job| job.0), ["same id", "same address as one that waits"]);

        let mut next = Box::pin(people.reserve(rest, |job| job.1));
        assert!((&mut next).now_or_never().is_none(), "the first call is in flight");
        drop(ready);
        let (ready, rest) = next.await;
        assert_eq!(names(&ready, |(job, _)| job.0), ["same id"]);
        assert_eq!(rest.len(), 1);
    }
}
