//! Flow control of what we send: how much a stream, or all of them together, may still carry.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// What every window begins with (2.6.8).
pub(super) const INITIAL: i64 = 64 << 10;
/// What none may grow beyond.
const MAX: i64 = 0x7fff_ffff;

#[derive(Debug)]
struct Inner {
    left: i64,
    enforced: bool,
    closed: bool,
}

/// A window. Counts from the start; makes anyone wait only once the peer knows flow control.
#[derive(Debug)]
pub(super) struct Window {
    inner: Mutex<Inner>,
    changed: Notify,
}

impl Window {
    pub(super) fn new(left: i64, enforced: bool) -> Self {
        let inner = Mutex::new(Inner { left, enforced, closed: false });
        Self { inner, changed: Notify::new() }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up to `want` bytes (not 0), as soon as one is free. `None`: it was closed. Dropping
    /// the future takes nothing.
    pub(super) async fn take(&self, want: usize) -> Option<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let got = self.with(|inner| {
                if inner.closed {
                    return Some(None);
                }
                let free = if inner.enforced {
                    usize::try_from(inner.left).unwrap_or(0)
                } else {
                    usize::MAX
                };
                let take = free.min(want);
                inner.left = inner.left.saturating_sub(i64::try_from(take).unwrap_or(i64::MAX));
                (take > 0).then_some(Some(take))
            });
            match got {
                Some(got) => return got,
                None => changed.await,
            }
        }
    }

    /// Gives `delta` more (or fewer). `false`: that is more than a window can be.
    pub(super) fn grow(&self, delta: i64) -> bool {
        let fits = self.with(|inner| {
            inner.left = inner.left.saturating_add(delta);
            !inner.enforced || inner.left <= MAX
        });
        self.changed.notify_waiters();
        fits
    }

    /// Waits until it is closed.
    pub(super) async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.with(|inner| inner.closed) {
                return;
            }
            changed.await;
        }
    }

    /// From now on it makes wait. Before that, what was sent did not count for anybody.
    pub(super) fn enforce(&self) {
        self.with(|inner| inner.enforced = true);
    }

    /// Nothing can be sent any more.
    pub(super) fn close(&self) {
        self.with(|inner| inner.closed = true);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn it_waits_only_where_the_peer_asks_for_that() {
        let window = Arc::new(Window::new(10, false));
        assert_eq!(window.take(15).await, Some(15));
        window.enforce();
        let waiting = tokio::spawn({
            let window = Arc::clone(&window);
            async move { window.take(100).await }
        });
        assert!(window.grow(5));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(window.grow(7));
        assert_eq!(waiting.await.unwrap(), Some(7));
    }

    #[tokio::test]
    async fn a_closed_one_says_so_and_an_overflow_is_told() {
        let window = Window::new(0, true);
        assert!(window.grow(MAX));
        assert!(!window.grow(1));
        window.close();
        assert_eq!(window.take(1).await, None);
    }
}
