//! Each verb over a list of plugins.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::cache::{Cache, Input, Phase, Record};
use crate::conf::{Network, PluginConf};
use crate::error::{Error, PluginError};
use crate::plugin::{self, Environment, Verb};
use crate::result;
use crate::work::{Stop, blocking};

/// CNI error code 3: the container is unknown, nothing needs to be cleaned up.
const UNKNOWN_CONTAINER: u32 = 3;

/// The key under which GC's input names what is attached (CNI specification, section 2, "GC").
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// What every run needs.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// For each plugin.
    pub(crate) deadline: Duration,
    pub(crate) cache: Cache,
}

impl Tools {
    /// Locks the plugins' input of an attachment, see [`Input`].
    pub(crate) async fn input(&self, id: &str, ifname: &str) -> Result<Input, Error> {
        let (cache, id, ifname) = (self.cache.clone(), id.to_owned(), ifname.to_owned());
        let patience = self.deadline;
        blocking(move || cache.input(&id, &ifname, patience)).await
    }

    pub(crate) async fn write(&self, record: &Record) -> Result<(), Error> {
        let (cache, record) = (self.cache.clone(), record.clone());
        blocking(move || cache.write(&record)).await?
    }

    /// For a verb that concerns no attachment.
    fn bare(&self, verb: Verb) -> Environment {
        Environment {
            verb,
            id: String::new(),
            netns: PathBuf::new(),
            ifname: String::new(),
            args: String::new(),
            bin_dirs: self.bin_dirs.clone(),
        }
    }

    fn environment(&self, verb: Verb, record: &Record, netns: &Path) -> Environment {
        Environment {
            verb,
            id: record.id.clone(),
            netns: netns.to_owned(),
            ifname: record.ifname.clone(),
            args: record.args.clone(),
            bin_dirs: self.bin_dirs.clone(),
        }
    }
}

/// Runs every plugin's ADD in order. Each answer goes to the next plugin and into the record,
/// which says `Attached` in the end.
pub(crate) async fn add(
    tools: &Tools,
    network: &Network,
    record: &mut Record,
    input: &Input,
    stop: &Stop,
) -> Result<(), Error> {
    let environment = tools.environment(Verb::Add, record, &record.netns);
    let last = network.plugins.len();
    for (step, conf) in (1..).zip(&network.plugins) {
        let text = network.input(conf, &record.capability_args, record.result.as_ref());
        let run = Run { tools, environment: &environment, input, stop };
        let answered = run.plugin(conf, &text).await;
        let answered = answered.and_then(|output| result::accept(&output, network.version));
        let answer = answered.map_err(|source| Error::Plugin {
            network: network.name.clone(),
            plugin: conf.kind.clone(),
            verb: Verb::Add,
            source: Box::new(source),
        })?;
        record.result = Some(answer);
        if step == last {
            record.phase = Phase::Attached;
        }
        tools.write(record).await?;
    }
    Ok(())
}

/// Runs every plugin's DEL in reverse order. One that fails does not keep the others from running.
///
/// `netns` is empty when the namespace is gone. A plugin that is gone, or says that it knows
/// nothing of the container, has nothing to undo.
pub(crate) async fn del(
    tools: &Tools,
    network: &Network,
    record: &Record,
    netns: &Path,
    input: &Input,
) -> Result<(), Error> {
    let environment = tools.environment(Verb::Del, record, netns);
    let stop = Stop::never();
    let run = Run { tools, environment: &environment, input, stop: &stop };
    let previous = record.result.as_ref().filter(|_| network.version.del_takes_result());
    let mut failures = Vec::new();
    for conf in network.plugins.iter().rev() {
        let text = network.input(conf, &record.capability_args, previous);
        match run.plugin(conf, &text).await {
            Ok(_) | Err(PluginError::Refused { code: UNKNOWN_CONTAINER, .. }) => {}
            Err(error @ PluginError::NotFound { .. }) => {
                tracing::warn!(id = record.id, plugin = conf.kind, %error, "DEL left out");
            }
            Err(error) => failures.push((conf.kind.clone(), error)),
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::Detach { network: network.name.clone(), failures })
    }
}

/// Runs every plugin's CHECK in order, each with the last result of ADD. The first that finds
/// something wrong ends it.
pub(crate) async fn check(
    tools: &Tools,
    network: &Network,
    record: &Record,
    input: &Input,
) -> Result<(), Error> {
    let environment = tools.environment(Verb::Check, record, &record.netns);
    let stop = Stop::never();
    let run = Run { tools, environment: &environment, input, stop: &stop };
    for conf in &network.plugins {
        let text = network.input(conf, &record.capability_args, record.result.as_ref());
        run.plugin(conf, &text).await.map_err(|source| Error::Plugin {
            network: network.name.clone(),
            plugin: conf.kind.clone(),
            verb: Verb::Check,
            source: Box::new(source),
        })?;
    }
    Ok(())
}

/// Runs every plugin's STATUS in order; the first that can't do its work, with its reason.
pub(crate) async fn status(tools: &Tools, network: &Network) -> Result<(), (String, PluginError)> {
    let mut failures = everywhere(tools, network, Verb::Status, None).await;
    if failures.is_empty() { Ok(()) } else { Err(failures.swap_remove(0)) }
}

/// Runs every plugin's GC, telling it which attachments there are. One that fails does not keep
/// the others from running.
pub(crate) async fn gc(tools: &Tools, network: &Network, valid: &Value) -> Result<(), Error> {
    let failures = everywhere(tools, network, Verb::Gc, Some(valid)).await;
    if failures.is_empty() {
        return Ok(());
    }
    Err(Error::Collect { network: network.name.clone(), failures })
}

/// A verb that concerns no attachment, on every plugin.
async fn everywhere(
    tools: &Tools,
    network: &Network,
    verb: Verb,
    valid: Option<&Value>,
) -> Vec<(String, PluginError)> {
    let environment = tools.bare(verb);
    let (input, stop) = (Input::in_memory(), Stop::never());
    let run = Run { tools, environment: &environment, input: &input, stop: &stop };
    let mut failures = Vec::new();
    for conf in &network.plugins {
        let mut text = network.input(conf, &Map::new(), None);
        if let (Some(valid), Some(keys)) = (valid, text.as_object_mut()) {
            keys.insert(VALID_ATTACHMENTS.into(), valid.clone());
        }
        if let Err(error) = run.plugin(conf, &text).await {
            failures.push((conf.kind.clone(), error));
        }
    }
    failures
}

/// Warns of what is asked for and nobody in the network can give.
pub(crate) fn warn_of_unheard(id: &str, network: &Network, capability_args: &Map<String, Value>) {
    // A plugin that takes no resolver leaves it to the pod's resolv.conf.
    for capability in capability_args.keys().filter(|c| *c != "dns" && !network.declares(c)) {
        tracing::warn!(
            id,
            network = network.name,
            capability,
            "no plugin of the network declares it: the pod goes without"
        );
    }
}

/// What the runs of one chain share.
struct Run<'a> {
    tools: &'a Tools,
    environment: &'a Environment,
    input: &'a Input,
    stop: &'a Stop,
}

impl Run<'_> {
    async fn plugin(&self, conf: &PluginConf, text: &Value) -> Result<Vec<u8>, PluginError> {
        if self.stop.is_asked() {
            return Err(PluginError::Stopped);
        }
        let path = plugin::find(&conf.kind, &self.tools.bin_dirs)?;
        let stdin = self.stdin(text).await?;
        plugin::run(&path, self.environment, stdin, self.tools.deadline, self.stop).await
    }

    async fn stdin(&self, text: &Value) -> Result<Stdio, PluginError> {
        let (input, text) = (self.input.clone(), text.to_string());
        let path = self.input.path().to_owned();
        let filled = blocking(move || input.fill(text.as_bytes())).await;
        let filled = filled.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        filled.map_err(|source| PluginError::Run { path, source })
    }
}
