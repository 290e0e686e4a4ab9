//! Which connections may be served, and which of them is closed when there are too many.
//!
//! A connection without a request in flight is idle. At the limit, new connections are served from
//! a small reserve, and the connection that has been idle longest is closed for each of them. So
//! idle connections never keep a probe out, and a request that has started is never cut.

#![expect(clippy::disallowed_methods, reason = "an edge: the idle time of a connection")]

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Connections beyond the limit, each for one request.
const RESERVE: usize = 16;
/// Idle time after which a connection may be closed. The request of a new connection may be on its
/// way, and is read within this time.
const IDLE_TIME_MIN: Duration = Duration::from_secs(1);
/// Time between two checks for an idle connection while there is no permit.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The permits of connections.
#[derive(Debug)]
pub(crate) struct ConnectionLimit {
    regular: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    idle: Arc<IdleConnections>,
}

/// The permission to serve one connection.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    /// Whether the connection is from the reserve, and ends after one request.
    pub(crate) is_reserve: bool,
}

/// The idle connections, in the order in which they became idle.
#[derive(Debug, Default)]
struct IdleConnections(Mutex<IdleQueue>);

#[derive(Debug, Default)]
struct IdleQueue {
    last_place: u64,
    waiting: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// What one connection does.
#[derive(Debug)]
pub(crate) struct Activity {
    idle: Arc<IdleConnections>,
    /// Its place among the idle connections; 0 while it is not idle.
    place: AtomicU64,
    /// Cancelled when the connection has to close, and when it has ended.
    close: CancellationToken,
}

impl ConnectionLimit {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            regular: Arc::new(Semaphore::new(connections)),
            reserve: Arc::new(Semaphore::new(RESERVE)),
            idle: Arc::default(),
        }
    }

    /// Waits until another connection may be served. At the limit, closes an idle one.
    pub(crate) async fn permit(&self) -> ConnectionPermit {
        if let Ok(permit) = self.regular.clone().try_acquire_owned() {
            return ConnectionPermit { _permit: permit, is_reserve: false };
        }
        loop {
            self.idle.close_longest();
            let (permit, is_reserve) = tokio::select! {
                biased;
                permit = self.regular.clone().acquire_owned() => (permit, false),
                permit = self.reserve.clone().acquire_owned() => (permit, true),
                () = sleep(RECHECK_INTERVAL) => continue,
            };
            let permit = permit.expect("the semaphores are never closed");
            return ConnectionPermit { _permit: permit, is_reserve };
        }
    }

    /// The activity of a new connection, which is idle.
    pub(crate) fn activity(&self) -> Arc<Activity> {
        let activity = Activity {
            idle: self.idle.clone(),
            place: AtomicU64::new(0),
            close: CancellationToken::new(),
        };
        activity.wait();
        Arc::new(activity)
    }
}

impl IdleConnections {
    fn close_longest(&self) {
        let mut queue = self.queue();
        let Some(longest) = queue.waiting.first_entry() else { return };
        let (since, close) = longest.get();
        if since.elapsed() >= IDLE_TIME_MIN {
            close.cancel();
            longest.remove();
        }
    }

    fn queue(&self) -> MutexGuard<'_, IdleQueue> {
        // The queue is complete after each change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Activity {
    /// A request has started to arrive.
    pub(crate) fn work(&self) {
        let place = self.place.swap(0, Ordering::Relaxed);
        if place != 0 {
            self.idle.queue().waiting.remove(&place);
        }
    }

    /// The connection waits for a request.
    fn wait(&self) {
        if self.close.is_cancelled() {
            return;
        }
        let mut queue = self.idle.queue();
        queue.last_place += 1;
        let place = queue.last_place;
        let before = self.place.swap(place, Ordering::Relaxed);
        queue.waiting.remove(&before);
        queue.waiting.insert(place, (Instant::now(), self.close.clone()));
    }

    /// The connection has ended, or has become a WebSocket.
    pub(crate) fn end(&self) {
        self.close.cancel();
        self.work();
    }

    /// Waits until the connection has to close, after the request in flight.
    pub(crate) async fn closing(&self) {
        self.close.cancelled().await;
    }
}

/// The body of a response. When it has been sent, or can't be, its connection is idle again.
#[derive(Debug)]
pub(crate) struct ActiveBody {
    body: Body,
    activity: Arc<Activity>,
}

impl ActiveBody {
    pub(crate) fn new(body: Body, activity: Arc<Activity>) -> Self {
        Self { body, activity }
    }
}

impl Drop for ActiveBody {
    fn drop(&mut self) {
        self.activity.wait();
    }
}

impl HttpBody for ActiveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_closing(activity: &Activity) -> bool {
        activity.close.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_been_idle_longest_is_closed() {
        let limit = ConnectionLimit::new(3);
        let mut permits = Vec::new();
        let [first, second, third] = std::array::from_fn(|_| limit.activity());
        for _ in 0..3 {
            permits.push(limit.permit().await);
        }
        assert!(permits.iter().all(|permit| !permit.is_reserve));
        second.work();
        assert!(limit.permit().await.is_reserve);
        assert!(!is_closing(&first), "it is not idle for long yet");
        tokio::time::advance(IDLE_TIME_MIN).await;
        drop(ActiveBody::new(Body::empty(), first.clone()));
        assert!(limit.permit().await.is_reserve);
        assert!(is_closing(&third) && !is_closing(&first) && !is_closing(&second));
        third.end();
        permits.pop();
        assert!(!limit.permit().await.is_reserve, "its permit is free");
    }

    #[tokio::test]
    async fn connections_with_a_request_are_not_closed_and_the_reserve_is_bounded() {
        let limit = ConnectionLimit::new(1);
        let _busy = limit.permit().await;
        let activity = limit.activity();
        activity.work();
        let mut reserve = Vec::new();
        for _ in 0..RESERVE {
            reserve.push(limit.permit().await);
        }
        assert!(limit.permit().now_or_never().is_none(), "all are busy");
        assert!(!is_closing(&activity));
        reserve.pop();
        assert!(limit.permit().now_or_never().is_some());
    }

    #[test]
    fn an_ended_connection_is_not_idle() {
        let limit = ConnectionLimit::new(1);
        let activity = limit.activity();
        let body = ActiveBody::new(Body::empty(), activity.clone());
        activity.end();
        drop(body);
        assert!(limit.idle.queue().waiting.is_empty());
    }
}
