//! What carries one stream of bytes from or to a client, whatever the protocol.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::{spdy, websocket};

/// Pieces that wait on one channel for whoever takes them: then the client has to wait, too.
pub(super) const QUEUE: usize = 8;
/// What is read from a client at a time, so what a piece has at most.
pub(super) const READ: usize = 64 << 10;
/// How often it is looked whether a client that has to wait is still there.
const LOOK: Duration = Duration::from_millis(500);

/// The client, or the channel, is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Gone;

/// What a client sends on one channel.
#[derive(Debug)]
pub(super) struct Input {
    pieces: mpsc::Receiver<Bytes>,
    credit: Option<spdy::Credit>,
}

impl Input {
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, credit: Option<spdy::Credit>) -> Self {
        Self { pieces, credit }
    }

    /// The next piece. `None`: the client will send no more. The future may be dropped.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.recv().await?;
        if let Some(credit) = &mut self.credit {
            credit.used(piece.len());
        }
        Some(piece)
    }
}

/// Where a client reads one channel.
#[derive(Debug)]
pub(super) enum Output {
    Spdy(spdy::Sender),
    WebSocket(websocket::Sender),
}

impl Output {
    /// Bytes that are kept free at the front of what is sent.
    pub(super) const HEADROOM: usize = 1;

    /// Sends what follows the headroom; waits while the client is slow.
    pub(super) async fn send(&mut self, piece: Vec<u8>) -> Result<(), Gone> {
        match self {
            Self::Spdy(sender) => {
                let mut piece = Bytes::from(piece);
                piece.advance(Self::HEADROOM.min(piece.len()));
                sender.send(piece).await
            }
            Self::WebSocket(sender) => sender.send(piece).await,
        }
    }

    /// As [`Self::send`], for what is at hand without a headroom.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.send([&[0; Self::HEADROOM], bytes].concat()).await
    }

    /// Nothing more will come: the client sees the end, where its protocol has one.
    pub(super) async fn finish(&mut self) {
        if let Self::Spdy(sender) = self {
            sender.finish().await;
        }
    }

    /// Whether the client can end what it sends and go on reading.
    pub(super) fn ends_by_halves(&self) -> bool {
        matches!(self, Self::Spdy(_))
    }

    /// Waits until the client does not want it any more, where its protocol can say that.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let lost = match self {
            Self::Spdy(sender) => Some(sender.lost()),
            Self::WebSocket(_) => None,
        };
        async move {
            match lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        }
    }
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Taken,
    /// Nobody reads the channel any more.
    Unwanted,
}

/// Hands a piece to whoever reads its channel; waits for room, as long as the client is there.
pub(super) async fn deliver(
    to: &mpsc::Sender<Bytes>,
    piece: Bytes,
    probe: &Probe,
) -> Result<Delivered, Gone> {
    loop {
        match tokio::time::timeout(LOOK, to.reserve()).await {
            Ok(Ok(room)) => {
                room.send(piece);
                return Ok(Delivered::Taken);
            }
            Ok(Err(_)) => return Ok(Delivered::Unwanted),
            Err(_) if probe.hung_up() => return Err(Gone),
            Err(_) => {}
        }
    }
}

/// Looks whether a client has hung up while nothing is read from it.
#[derive(Debug)]
pub(super) struct Probe(Option<OwnedFd>);

impl Probe {
    /// `socket`: another descriptor of the client's socket.
    pub(super) fn new(socket: Option<OwnedFd>) -> Self {
        Self(socket)
    }

    fn hung_up(&self) -> bool {
        let Some(socket) = &self.0 else { return false };
        let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
        let ready = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok_and(|count| count > 0)
    }
}

/// When a connection last carried anything.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    last_millis: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), last_millis: AtomicU64::new(0) }
    }

    pub(super) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing was carried for so long.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
            let until = self.began + last + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Tells when a client is gone.
#[derive(Debug, Clone)]
pub(super) struct Presence(watch::Receiver<bool>);

impl Presence {
    /// The one who says it, and those who hear it.
    pub(super) fn new() -> (watch::Sender<bool>, Self) {
        let (tell, told) = watch::channel(false);
        (tell, Self(told))
    }

    /// Waits until the client is gone.
    pub(super) async fn ended(&mut self) {
        // Whoever would tell is gone, too: that is the same.
        let _told = self.0.wait_for(|gone| *gone).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_byte() {
        let activity = Activity::new();
        tokio::time::advance(Duration::from_secs(3)).await;
        activity.touch();
        let began = Instant::now();
        activity.idle(Duration::from_secs(5)).await;
        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test]
    async fn one_who_must_wait_and_hangs_up_is_noticed() {
        let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
        let (to, mut pieces) = mpsc::channel(1);
        let probe = Probe::new(Some(server.into()));
        let piece = Bytes::from_static(b"x");
        assert_eq!(deliver(&to, piece.clone(), &probe).await, Ok(Delivered::Taken));
        drop(client);
        assert_eq!(deliver(&to, piece.clone(), &probe).await, Err(Gone));
        pieces.close();
        assert_eq!(deliver(&to, piece, &probe).await, Ok(Delivered::Unwanted));
    }
}
