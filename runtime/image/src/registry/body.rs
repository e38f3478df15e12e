//! Bodies as they arrive: no faster than the node's budget, and not slower than is bearable.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout};

use super::connect::causes;
use super::net::Net;
use super::{Error, RegistryConfig};

/// A body as it arrives.
pub(crate) struct Body {
    url: String,
    inner: Incoming,
    stall_timeout: Duration,
    min_rate: u64,
    bandwidth: Option<u64>,
    /// What was waited for the network, and what that brought, since the last look.
    waited: Duration,
    brought: u64,
    net: Arc<Net>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Body {
    pub(super) fn new(
        url: String,
        inner: Incoming,
        config: &RegistryConfig,
        net: &Arc<Net>,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            url,
            inner,
            stall_timeout: config.stall_timeout,
            min_rate: config.min_rate,
            bandwidth: config.bandwidth,
            waited: Duration::ZERO,
            brought: 0,
            net: net.clone(),
            _slot: slot,
        }
    }

    /// Where it comes from.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The host that it comes from.
    pub(crate) fn host(&self) -> &str {
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or_default()
    }

    /// The next piece; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let began = Instant::now();
            let frame = timeout(self.stall_timeout, self.inner.frame()).await.map_err(|_| {
                Error::Stalled { url: self.url.clone(), span: self.stall_timeout, brought: 0 }
            })?;
            self.waited += began.elapsed();
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    let reason = causes(&error);
                    return Err(Error::Transport { url: self.url.clone(), reason });
                }
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    self.judge(data.len())?;
                    if data.is_empty() {
                        continue;
                    }
                    if let Some(rate) = self.bandwidth {
                        sleep(self.net.bandwidth.take(data.len(), rate)).await;
                    }
                    return Ok(Some(data));
                }
            }
        }
    }

    /// A drip now and then is as good as nothing. Only the time spent waiting for the network
    /// counts, not that in which nobody asked.
    fn judge(&mut self, count: usize) -> Result<(), Error> {
        self.brought = self.brought.saturating_add(count as u64);
        if self.waited < self.stall_timeout {
            return Ok(());
        }
        let millis = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX);
        let bearable = self.min_rate.saturating_mul(millis) / 1000;
        let (span, brought) = (self.waited, self.brought);
        (self.waited, self.brought) = (Duration::ZERO, 0);
        if brought < bearable {
            return Err(Error::Stalled { url: self.url.clone(), span, brought });
        }
        Ok(())
    }

    /// All of it, if it is no longer than `limit`.
    pub(crate) async fn read_all(&mut self, limit: u64) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            if all.len() as u64 + piece.len() as u64 > limit {
                let reason = format!("longer than {limit} bytes");
                return Err(Error::BadAnswer { url: self.url.clone(), reason });
            }
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}
