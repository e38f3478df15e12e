//! The one door of this crate.

mod care;
mod own;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::statfs;
use tokio::sync::RwLock;

use crate::attachment::Attachment;
use crate::builtin::{Bridge, BridgeConfig};
use crate::cache::{Cache, Found, Input, Phase, Record};
use crate::chain::{self, Tools};
use crate::conf::Network;
use crate::directory::Directory;
use crate::error::{Error, NotReady, PluginError};
use crate::health::Health;
use crate::plugin;
use crate::result::{self, Attached};
use crate::work::{Slots, Stop, Tasks, blocking};

/// Of a namespace's file (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Where things are and how long plugins may take.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Holds the configuration files, such as /etc/cni/net.d. May be missing.
    pub conf_dir: PathBuf,
    /// Searched in order for plugins.
    pub bin_dirs: Vec<PathBuf>,
    /// For the records of attachments; made if missing, mode 0700. One daemon's own.
    pub cache_dir: PathBuf,
    /// The time each run of one plugin has.
    pub plugin_deadline: Duration,
    /// Whether attachments go to the built-in network while the directory holds no configuration.
    pub builtin: bool,
    /// How that is made. Also needed where it is off: to take away what it once made.
    pub bridge: BridgeConfig,
}

impl NetworkConfig {
    /// One minute: kubelet gives RunPodSandbox four and StopPodSandbox two.
    pub const PLUGIN_DEADLINE: Duration = Duration::from_secs(60);
}

/// Attaches and detaches, and knows whether that is possible.
///
/// Operations on different attachments run side by side, those on one attachment one after the
/// other.
///
/// **Dropped futures.** `add` and `del` do their work in tasks of this crate. A future dropped
/// half-way leaves its task running to its end: a chain either completes or is undone by DEL, no
/// plugin is killed half-way for a caller that went away. Whoever dropped an `add` owes a `del`;
/// that `del` does not wait for the `add` to run its course, it kills the plugin that runs, and
/// the chain is undone. [`close`](Self::close) joins all tasks.
///
/// **Crashes.** Before the first plugin runs there is a record, see [`cached`](Self::cached);
/// after a crash or reboot `del` works from it. A plugin that a killed daemon left running is
/// waited for, up to the deadline of one plugin. Dropping `Networks` without `close` is such a
/// crash.
#[derive(Debug)]
pub struct Networks {
    shared: Arc<Shared>,
    tasks: Tasks,
}

#[derive(Debug)]
struct Shared {
    directory: Directory,
    tools: Tools,
    slots: Slots,
    builtin: bool,
    bridge: Arc<Bridge>,
    health: Arc<Health>,
    /// Read while an ADD makes its record, written while GC runs: what GC does not know of when it
    /// begins must not begin before it ends.
    gate: RwLock<()>,
}

/// How a new attachment gets its network.
#[derive(Debug)]
enum Way {
    Cni(Arc<Network>),
    Builtin,
}

impl Networks {
    /// Makes the directory of records; reads no configuration yet.
    ///
    /// # Errors
    /// [`Error::Record`] when that directory cannot be made.
    pub async fn open(config: NetworkConfig) -> Result<Self, Error> {
        let cache_dir = config.cache_dir;
        let opened = blocking(move || {
            let cache = Cache::open(&cache_dir)?;
            let leases = cache.leases()?;
            Ok::<_, Error>((cache, leases))
        });
        let (cache, leases) = opened.await??;
        let tools = Tools { bin_dirs: config.bin_dirs, deadline: config.plugin_deadline, cache };
        let directory = Directory::new(config.conf_dir);
        let shared = Arc::new(Shared {
            directory,
            tools,
            slots: Slots::default(),
            builtin: config.builtin,
            bridge: Arc::new(Bridge::new(config.bridge, leases)),
            health: Arc::new(Health::new()),
            gate: RwLock::new(()),
        });
        Ok(Self { shared, tasks: Tasks::new() })
    }

    /// Whether pods can be given a network now. Looks at the directory each time (two stat calls
    /// when nothing changed) and that each plugin's file is there. From CNI 1.1.0 on plugins are
    /// asked, too, aside from the caller: the answer may be some seconds old.
    ///
    /// # Errors
    /// [`NotReady`], its message naming the directory, file or plugin that is missing or broken,
    /// or the plugin that says it can't work.
    pub async fn status(&self) -> Result<(), NotReady> {
        let shared = self.shared.clone();
        let looked = blocking(move || shared.look()).await;
        match looked.unwrap_or_else(|e| Err(NotReady::new(e.to_string())))? {
            Way::Cni(network) => self.shared.health.of(network, &self.shared.tools).await,
            Way::Builtin => self.shared.own_status().await,
        }
    }

    /// Attaches: runs ADD of every plugin of the network in force.
    ///
    /// On failure what was done is undone before the error is returned; should that fail too, the
    /// record stays, and `del` tries again. So `del` after a failed `add` is always right and
    /// mostly without work.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NotReady`], [`Error::Exists`] before anything is done;
    /// [`Error::Plugin`], [`Error::NoAddress`], [`Error::Record`]; [`Error::Cancelled`] when a
    /// `del` came; [`Error::Closed`].
    pub async fn add(&self, attachment: &Attachment) -> Result<Attached, Error> {
        attachment.check_for_add()?;
        let (shared, attachment) = (self.shared.clone(), attachment.clone());
        let slot = shared.slots.slot(&attachment.id, &attachment.ifname);
        // From here on a `del` means this `add`.
        let stop = slot.listen();
        let work = async move {
            let _turn = slot.turn.lock().await;
            shared.add(&attachment, &stop).await
        };
        self.tasks.run(work).await
    }

    /// Detaches: runs DEL of every plugin in reverse order, with the configuration and arguments
    /// that the record kept from `add`. Without a record there is nothing to do. Idempotent.
    ///
    /// Needs of the attachment only id and ifname, and, should the record have been torn by a
    /// power cut, the rest, for a DEL with the configuration in force now. The namespace may be
    /// gone. `add`s of the same attachment that began earlier are ended.
    ///
    /// # Errors
    /// [`Error::Detach`] when plugins failed (all were tried, the record stays);
    /// [`Error::Invalid`], [`Error::Record`], [`Error::Closed`]; [`Error::NotReady`] when the
    /// record is torn and there is no configuration to try with.
    pub async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        attachment.check()?;
        let (shared, attachment) = (self.shared.clone(), attachment.clone());
        let slot = shared.slots.slot(&attachment.id, &attachment.ifname);
        slot.stop_others();
        let work = async move {
            let _turn = slot.turn.lock().await;
            shared.del(&attachment).await
        };
        self.tasks.run(work).await
    }

    /// Detaches every interface of `id` that has a record: for what a recovery finds in
    /// [`cached`](Self::cached) and no pod owns.
    ///
    /// # Errors
    /// As [`del`](Self::del); the first one, after all were tried.
    pub async fn del_all(&self, id: &str) -> Result<(), Error> {
        let mut outcome = Ok(());
        for (found, ifname) in self.records().await? {
            if found == id {
                let attachment = Attachment { id: found, ifname, ..Attachment::default() };
                outcome = outcome.and(self.del(&attachment).await);
            }
        }
        outcome
    }

    /// The ids that have a record: attached, being attached, or left over from a crash. Sorted,
    /// each once.
    ///
    /// # Errors
    /// [`Error::Record`] when the directory cannot be read.
    pub async fn cached(&self) -> Result<Vec<String>, Error> {
        let mut ids: Vec<String> = self.records().await?.into_iter().map(|(id, _)| id).collect();
        ids.dedup();
        Ok(ids)
    }

    /// What a completed `add` returned, from its record; `None` without one.
    ///
    /// # Errors
    /// [`Error::Invalid`]; [`Error::Record`] when the record cannot be read.
    pub async fn attached(&self, id: &str, ifname: &str) -> Result<Option<Attached>, Error> {
        let key = Attachment { id: id.into(), ifname: ifname.into(), ..Attachment::default() };
        key.check()?;
        let cache = self.shared.tools.cache.clone();
        let found = blocking(move || cache.read(&key.id, &key.ifname)).await??;
        let Found::Record(record) = found else { return Ok(None) };
        let complete = record.phase == Phase::Attached;
        if let Some(lease) = record.lease.as_ref().filter(|_| complete) {
            return Ok(Some(own::attached(self.shared.bridge.name(), &record, lease)));
        }
        let network = record.network().ok().filter(|_| complete);
        Ok(network.and_then(|network| outcome(&network, &record).ok()))
    }

    /// Takes no more work and returns when all plugins are done; bounded by their deadlines.
    pub async fn close(&self) {
        self.tasks.close().await;
    }

    async fn records(&self) -> Result<Vec<(String, String)>, Error> {
        let cache = self.shared.tools.cache.clone();
        blocking(move || cache.list()).await?
    }
}

impl Shared {
    /// The network in force, all of whose plugins are there. Blocks.
    fn look(&self) -> Result<Way, NotReady> {
        let network = match self.directory.current() {
            Err(not_ready) if not_ready.absent && self.builtin => return Ok(Way::Builtin),
            found => found?,
        };
        for conf in &network.plugins {
            plugin::find(&conf.kind, &self.tools.bin_dirs).map_err(|e| {
                let text = format!("network {:?}: plugin {:?}: {e}", network.name, conf.kind);
                NotReady::new(text)
            })?;
        }
        Ok(Way::Cni(network))
    }

    async fn add(self: Arc<Self>, asked: &Attachment, stop: &Stop) -> Result<Attached, Error> {
        let gate = self.gate.read().await;
        let shared = self.clone();
        let way = blocking(move || shared.look()).await??;
        if !matches!(self.read(asked).await?, Found::Nothing) {
            return Err(Error::Exists { id: asked.id.clone(), ifname: asked.ifname.clone() });
        }
        let Way::Cni(network) = way else { return self.own_add(asked).await };
        let capability_args = asked.capability_args();
        chain::warn_of_unheard(&asked.id, &network, &capability_args);
        let mut record = Record::intent(asked, &network, capability_args);
        if let Err(error) = self.tools.write(&record).await {
            // Nothing has run yet.
            self.forget(&record).await.unwrap_or_else(|e| tracing::warn!("{e}"));
            return Err(error);
        }
        drop(gate);
        let input = self.tools.input(&asked.id, &asked.ifname).await?;
        let done = chain::add(&self.tools, &network, &mut record, &input, stop).await;
        let done = done.and_then(|()| outcome(&network, &record));
        if done.is_err() {
            self.undo(&network, &record, &input).await;
        }
        input.release();
        done.map_err(|error| stopped(error, asked))
    }

    /// Takes a failed ADD back. What fails here is left, with the record, to `del`.
    async fn undo(&self, network: &Network, record: &Record, input: &Input) {
        let undone = self.del_recorded(network, record, &record.netns, input).await;
        if let Err(error) = undone {
            tracing::warn!(id = record.id, ifname = record.ifname, %error, "undo a failed ADD");
        }
    }

    async fn del(self: Arc<Self>, asked: &Attachment) -> Result<(), Error> {
        let (network, record) = match self.read(asked).await? {
            Found::Nothing => return Ok(()),
            Found::Record(record) => match (&record.lease, record.network()) {
                (Some(lease), _) => return self.own_del(&record, lease).await,
                (None, Ok(network)) => (Arc::new(network), *record),
                (None, Err(_)) => self.guess(asked).await?,
            },
            Found::Torn => match self.directory.current() {
                Err(not_ready) if not_ready.absent && self.builtin => {
                    return self.own_torn(asked).await;
                }
                _ => self.guess(asked).await?,
            },
        };
        let netns = if asked.netns.as_os_str().is_empty() { &record.netns } else { &asked.netns };
        let input = self.tools.input(&asked.id, &asked.ifname).await?;
        let done = self.del_recorded(&network, &record, netns, &input).await;
        input.release();
        done
    }

    /// For a torn record: what `add` would do now.
    async fn guess(self: &Arc<Self>, asked: &Attachment) -> Result<(Arc<Network>, Record), Error> {
        tracing::warn!(
            id = asked.id,
            ifname = asked.ifname,
            "the record is torn: DEL with the configuration in force now"
        );
        let shared = self.clone();
        let network = blocking(move || shared.directory.current()).await??;
        let record = Record::intent(asked, &network, asked.capability_args());
        Ok((network, record))
    }

    /// Runs DEL and forgets the attachment when all of it succeeded.
    async fn del_recorded(
        &self,
        network: &Network,
        record: &Record,
        netns: &Path,
        input: &Input,
    ) -> Result<(), Error> {
        let path = netns.to_owned();
        let netns =
            blocking(move || if is_namespace(&path) { path } else { PathBuf::new() }).await?;
        chain::del(&self.tools, network, record, &netns, input).await?;
        self.forget(record).await
    }

    async fn forget(&self, record: &Record) -> Result<(), Error> {
        let (cache, id, ifname) =
            (self.tools.cache.clone(), record.id.clone(), record.ifname.clone());
        blocking(move || cache.remove(&id, &ifname)).await?
    }

    async fn read(&self, key: &Attachment) -> Result<Found, Error> {
        let (cache, id, ifname) = (self.tools.cache.clone(), key.id.clone(), key.ifname.clone());
        blocking(move || cache.read(&id, &ifname)).await?
    }
}

/// What the record's result says; an interface without an address is a failure.
fn outcome(network: &Network, record: &Record) -> Result<Attached, Error> {
    let none = || Error::NoAddress { network: network.name.clone(), ifname: record.ifname.clone() };
    let value = record.result.as_ref().ok_or_else(none)?;
    // Each answer was checked when it came.
    let attached = result::parse(&network.name, &record.ifname, value).map_err(|_| none())?;
    if attached.ips.is_empty() { Err(none()) } else { Ok(attached) }
}

/// A chain that was stopped, in words of the attachment.
fn stopped(error: Error, asked: &Attachment) -> Error {
    match error {
        Error::Plugin { source, .. } if matches!(*source, PluginError::Stopped) => {
            Error::Cancelled { id: asked.id.clone(), ifname: asked.ifname.clone() }
        }
        other => other,
    }
}

/// Whether a namespace is there: after a reboot or an unmount its pin is a plain file.
fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}
