//! What a driver is told: by the roster, and by its own operations.

use std::time::Duration;

use berth_proto::ids::{ContainerId, PodId};

use crate::pod::cleanup::Cleanup;
use crate::pod::container::Reply;
use crate::pod::create::Made;
use crate::pod::exit::Ended;
use crate::pod::run::Ran;
use crate::pod::spec::ContainerSpec;
use crate::pod::start::Started;
use crate::pod::stop::Stopped;
use crate::pod::{Error, ExecOutput, Result};
use crate::shim::{Ends, Leash, Open};
use crate::store::PodRecord;

/// A request. Each is answered exactly once, unless its caller has gone.
#[derive(Debug)]
pub(crate) enum Message {
    /// Run the pod, or join that.
    Run(Reply<PodId>),
    /// Stop the pod.
    Stop(Reply<()>),
    /// Remove the pod.
    Remove(Reply<()>),
    /// Make a container.
    Create(Box<ContainerSpec>, Reply<ContainerId>),
    /// Start one.
    Start(ContainerId, Reply<()>),
    /// Stop one.
    Halt(ContainerId, Duration, Reply<()>),
    /// Remove one.
    Discard(ContainerId, Reply<()>),
    /// Run a command in one.
    Exec(ContainerId, Vec<String>, Option<Duration>, Reply<ExecOutput>),
    /// Give the streams of one, or of a command in one.
    Open(ContainerId, Open, Reply<(Leash, Ends)>),
    /// Open the log of one anew.
    ReopenLog(ContainerId, Reply<()>),
}

impl Message {
    /// The pod is gone: what there was to stop or remove is as it should be.
    pub(crate) fn refuse(self, pod: &str) {
        let gone = || Error::NoPod { id: pod.to_owned() };
        // A caller that has gone needs no answer.
        match self {
            Self::Stop(reply)
            | Self::Remove(reply)
            | Self::Halt(_, _, reply)
            | Self::Discard(_, reply) => drop(reply.send(Ok(()))),
            Self::Run(reply) => drop(reply.send(Err(gone()))),
            Self::Create(_, reply) => drop(reply.send(Err(gone()))),
            Self::Start(_, reply) | Self::ReopenLog(_, reply) => drop(reply.send(Err(gone()))),
            Self::Exec(_, _, _, reply) => drop(reply.send(Err(gone()))),
            Self::Open(_, _, reply) => drop(reply.send(Err(gone()))),
        }
    }
}

/// What came of an operation.
pub(crate) enum Done {
    /// RunPodSandbox.
    Ran(Box<Ran>),
    /// StopPodSandbox, or the clearing up after a shim's death.
    Stopped(Box<Stopped>),
    /// RemovePodSandbox.
    Removed(Box<PodRecord>),
    /// CreateContainer.
    Created(ContainerId, Box<Made>),
    /// StartContainer.
    Started(ContainerId, Box<Started>),
    /// A container's first process ended. None: nobody knows, the connection broke.
    Ended(ContainerId, Option<Ended>),
    /// StopContainer has done what it can.
    Halted(ContainerId, Result<()>),
    /// RemoveContainer.
    Discarded(ContainerId, Result<Vec<Cleanup>>),
    /// The shim's process ended.
    ShimDied,
    /// The connection to a living shim was lost; true: there is a new one.
    Relinked(bool),
    /// What is still left over.
    Retried(Vec<Cleanup>),
    /// It has answered for itself. `lost`: the connection to the shim broke meanwhile.
    Answered {
        /// Whether the shim has to be reached anew.
        lost: bool,
    },
}
