//! Attachments to the built-in network.

use std::sync::Arc;

use super::{NotReady, Shared};
use crate::attachment::Attachment;
use crate::builtin::{Bridge, KernelError, Lease};
use crate::cache::{Phase, Record};
use crate::error::Error;
use crate::result::{Attached, Interface};
use crate::work::blocking;

impl Shared {
    pub(super) async fn own_status(&self) -> Result<(), NotReady> {
        let bridge = self.bridge.clone();
        let ready = blocking(move || bridge.ready()).await;
        let not_ready = |error: &dyn std::fmt::Display| {
            NotReady::new(format!("built-in network {:?}: {error}", self.bridge.name()))
        };
        ready.map_err(|e| not_ready(&e))?.map_err(|e| not_ready(&e))
    }

    pub(super) async fn own_add(&self, asked: &Attachment) -> Result<Attached, Error> {
        let lease = self.bridge.lease(asked)?;
        let mut record = Record::own(asked, lease.clone());
        if let Err(error) = self.tools.write(&record).await {
            self.bridge.release(&lease);
            self.forget(&record).await.unwrap_or_else(|e| tracing::warn!("{e}"));
            return Err(error);
        }
        let netns = asked.netns.clone();
        let made =
            self.with_bridge(&lease, move |bridge, lease| bridge.attach(lease, &netns)).await;
        record.phase = Phase::Attached;
        let made = match made {
            Ok(()) => self.tools.write(&record).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            if let Err(error) = self.own_del(&record, &lease).await {
                tracing::warn!(id = record.id, %error, "undo a failed attachment");
            }
            return Err(error);
        }
        Ok(attached(self.bridge.name(), &record, &lease))
    }

    pub(super) async fn own_del(&self, record: &Record, lease: &Lease) -> Result<(), Error> {
        self.with_bridge(lease, Bridge::detach).await?;
        self.forget(record).await?;
        // Last: what is on record is nobody else's.
        self.bridge.release(lease);
        Ok(())
    }

    pub(super) async fn own_check(&self, lease: &Lease) -> Result<(), Error> {
        self.with_bridge(lease, Bridge::check).await
    }

    /// A torn record tells nothing; but whatever no lease knows goes when the ground is laid, the
    /// first time in a daemon's life.
    pub(super) async fn own_torn(&self, asked: &Attachment) -> Result<(), Error> {
        let bridge = self.bridge.clone();
        blocking(move || bridge.ready()).await?.map_err(|e| self.kernel(e))?;
        let cache = self.tools.cache.clone();
        let (id, ifname) = (asked.id.clone(), asked.ifname.clone());
        blocking(move || cache.remove(&id, &ifname)).await?
    }

    async fn with_bridge(
        &self,
        lease: &Lease,
        work: impl FnOnce(&Bridge, &Lease) -> Result<(), KernelError> + Send + 'static,
    ) -> Result<(), Error> {
        let (bridge, lease) = (Arc::clone(&self.bridge), lease.clone());
        blocking(move || work(&bridge, &lease)).await?.map_err(|e| self.kernel(e))
    }

    fn kernel(&self, source: KernelError) -> Error {
        Error::Builtin { network: self.bridge.name().to_owned(), source }
    }
}

/// What a record says of an attachment to the built-in network.
pub(super) fn attached(network: &str, record: &Record, lease: &Lease) -> Attached {
    let host = Interface { name: lease.host.clone(), ..Interface::default() };
    let inside = Interface {
        name: lease.ifname.clone(),
        mac: lease.mac.clone(),
        sandbox: record.netns.display().to_string(),
    };
    Attached {
        network: network.to_owned(),
        ips: lease.addresses.clone(),
        interfaces: vec![host, inside],
        ..Attached::default()
    }
}
