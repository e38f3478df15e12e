//! What is done for attachments between `add` and `del`: CHECK and GC.

use std::sync::Arc;

use serde_json::json;

use super::{Networks, Shared, Way};
use crate::attachment::Attachment;
use crate::cache::{Found, Phase};
use crate::chain;
use crate::error::Error;
use crate::work::blocking;

impl Networks {
    /// Runs CHECK of every plugin on what `add` made. Nothing to do below CNI 0.4.0 and where the
    /// configuration of that time disables it.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::Plugin`] with what is wrong; [`Error::Invalid`],
    /// [`Error::Record`], [`Error::Closed`].
    pub async fn check(&self, id: &str, ifname: &str) -> Result<(), Error> {
        let key = Attachment { id: id.into(), ifname: ifname.into(), ..Attachment::default() };
        key.check()?;
        let shared = self.shared.clone();
        let slot = shared.slots.slot(id, ifname);
        let work = async move {
            let _turn = slot.turn.lock().await;
            shared.check(&key).await
        };
        self.tasks.run(work).await
    }

    /// Runs CHECK on every attachment, one after the other, and returns what is wrong.
    pub async fn check_all(&self) -> Vec<(String, Error)> {
        let mut wrong = Vec::new();
        for (id, ifname) in self.records().await.unwrap_or_default() {
            match self.check(&id, &ifname).await {
                Ok(()) | Err(Error::NotAttached { .. } | Error::Closed) => {}
                Err(error) => wrong.push((id, error)),
            }
        }
        wrong
    }

    /// Runs GC of every plugin of the network in force, so that they free what belongs to no
    /// attachment on record. Only to be called when each pod's leftovers are on record again, that
    /// is, after recovery. `add`s that come meanwhile wait for its end. `false`: there was nothing
    /// to run, below CNI 1.1.0 or where the configuration disables it.
    ///
    /// # Errors
    /// [`Error::Collect`] when plugins failed; all were run. [`Error::NotReady`],
    /// [`Error::Record`], [`Error::Closed`].
    pub async fn gc(&self) -> Result<bool, Error> {
        let shared = self.shared.clone();
        self.tasks.run(async move { shared.gc().await }).await
    }
}

impl Shared {
    async fn check(&self, asked: &Attachment) -> Result<(), Error> {
        let missing = || Error::NotAttached { id: asked.id.clone(), ifname: asked.ifname.clone() };
        let Found::Record(record) = self.read(asked).await? else { return Err(missing()) };
        if record.phase != Phase::Attached {
            return Err(missing());
        }
        if let Some(lease) = &record.lease {
            return self.own_check(lease).await;
        }
        let network = record.network().map_err(|_| missing())?;
        if !network.version.has_check() || network.disabled.check {
            return Ok(());
        }
        let input = self.tools.input(&asked.id, &asked.ifname).await?;
        let done = chain::check(&self.tools, &network, &record, &input).await;
        input.release();
        done
    }

    async fn gc(self: Arc<Self>) -> Result<bool, Error> {
        let shared = self.clone();
        let Way::Cni(network) = blocking(move || shared.look()).await?? else { return Ok(false) };
        if !network.version.has_status_and_gc() || network.disabled.gc {
            return Ok(false);
        }
        let _gate = self.gate.write().await;
        let cache = self.tools.cache.clone();
        // All of them, whatever their network: too many harm nobody.
        let records = blocking(move || cache.list()).await??;
        let valid = records.iter().map(|(id, ifname)| json!({"containerID": id, "ifname": ifname}));
        chain::gc(&self.tools, &network, &valid.collect()).await?;
        Ok(true)
    }
}
