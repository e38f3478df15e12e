//! The way from a node's loopback to the registry: a plain TCP relay that a test can cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A relay; ends with its value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// Bytes towards the node that may still pass; `u64::MAX` means no limit.
    allowance: AtomicU64,
    /// When so many bytes have passed in all, nothing moves; `u64::MAX` means never.
    hold: watch::Sender<u64>,
    passed: AtomicU64,
    connections: AtomicU64,
}

impl Proxy {
    /// Relays what comes to this listener.
    pub fn new(listener: std::net::TcpListener, target: SocketAddr) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target,
            allowance: AtomicU64::new(u64::MAX),
            hold: watch::Sender::new(u64::MAX),
            passed: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// After so many more bytes every connection is closed, until [`Proxy::mend`].
    pub fn cut_after(&self, bytes: u64) {
        self.shared.allowance.store(bytes, Ordering::SeqCst);
    }

    /// After so many more bytes (and what is under way) nothing moves, until [`Proxy::mend`].
    pub fn hold_after(&self, bytes: u64) {
        self.shared.hold.send_replace(self.passed().saturating_add(bytes));
    }

    /// Lets everything pass again.
    pub fn mend(&self) {
        self.shared.hold.send_replace(u64::MAX);
        self.shared.allowance.store(u64::MAX, Ordering::SeqCst);
    }

    /// Bytes that passed towards the node so far.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// Connections taken so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((node, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(relay(node, Arc::clone(&shared)));
    }
}

/// Ends with the first side that ends, or with the allowance.
async fn relay(node: TcpStream, shared: Arc<Shared>) -> std::io::Result<()> {
    let registry = TcpStream::connect(shared.target).await?;
    let (mut node_in, mut node_out) = node.into_split();
    let (mut registry_in, mut registry_out) = registry.into_split();
    let mut buffer = vec![0; 64 << 10];
    let down = async {
        loop {
            let count = registry_in.read(&mut buffer).await?;
            shared.let_through().await;
            let granted = shared.take(count);
            let Some(bytes) = buffer.get(..granted).filter(|bytes| !bytes.is_empty()) else {
                return std::io::Result::Ok(());
            };
            node_out.write_all(bytes).await?;
            if granted < count {
                return Ok(());
            }
        }
    };
    tokio::select! {
        outcome = down => outcome,
        outcome = tokio::io::copy(&mut node_in, &mut registry_out) => outcome.map(drop),
    }
}

impl Shared {
    async fn let_through(&self) {
        let passes = |hold: &u64| self.passed.load(Ordering::SeqCst) < *hold;
        // The sender is this very value's.
        let _ = self.hold.subscribe().wait_for(passes).await;
    }

    /// How many of these bytes may pass.
    fn take(&self, count: usize) -> usize {
        let wanted = count as u64;
        let spend =
            |left: u64| Some(if left == u64::MAX { left } else { left.saturating_sub(wanted) });
        let before = self.allowance.fetch_update(Ordering::SeqCst, Ordering::SeqCst, spend);
        let granted = before.unwrap_or(0).min(wanted);
        self.passed.fetch_add(granted, Ordering::SeqCst);
        usize::try_from(granted).unwrap_or(count)
    }
}
