//! The services: decode a call, check it, hand it to the shim; encode what the shim answers.
//!
//! Generated message types are named here and nowhere else (but for the delete verb's answer).

mod pod;
mod task;

use containerd_shim_protos::protobuf;

use crate::container::Exit;
use crate::exec::ExecOutcome;
use crate::leash::{Ending, StreamKind};
use crate::shim::Shim;
use crate::ttrpc::{Code, ReplyTo, Status};

/// What the shim answers, in its own words.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Created {
        pid: u32,
    },
    Started {
        pid: u32,
    },
    Waited(Exit),
    Deleted {
        pid: u32,
        exit: Exit,
    },
    PodCreated {
        shim_pid: u32,
        init_pid: u32,
    },
    PodStopped,
    Executed(ExecOutcome),
    Output {
        stdout: Vec<u8>,
        stderr: Vec<u8>,
        last: bool,
    },
    Opened(Vec<StreamKind>),
    StreamsEnded(Ending),
    /// Encoded already.
    Encoded(Vec<u8>),
}

/// What a handler says: the answer, or nothing yet.
type Answer = Result<Option<Reply>, Status>;

/// Hands a call to its method.
pub(crate) fn dispatch(
    shim: &mut Shim,
    to: ReplyTo,
    service: &str,
    method: &str,
    payload: &[u8],
) -> Answer {
    match service {
        // Version 3 is version 2 under another name.
        "containerd.task.v3.Task" | "containerd.task.v2.Task" => {
            task::dispatch(shim, to, method, payload)
        }
        berth_proto::shim::SERVICE => pod::dispatch(shim, to, method, payload),
        _ => Err(Status::new(Code::Unimplemented, format!("service {service:?} is unknown"))),
    }
}

/// The bytes of an answer.
pub(crate) fn encode(reply: Reply) -> Result<Vec<u8>, Status> {
    match reply {
        Reply::Encoded(bytes) => Ok(bytes),
        Reply::Created { .. }
        | Reply::Started { .. }
        | Reply::Waited(_)
        | Reply::Deleted { .. } => task::encode(reply),
        Reply::PodCreated { .. }
        | Reply::PodStopped
        | Reply::Executed(_)
        | Reply::Opened(_)
        | Reply::StreamsEnded(_)
        | Reply::Output { .. } => Ok(pod::encode(reply)),
    }
}

fn unimplemented(service: &str, method: &str) -> Status {
    Status::new(Code::Unimplemented, format!("{service}/{method} is not implemented"))
}

/// A message of rust-protobuf from its bytes.
fn parse<M: protobuf::Message>(payload: &[u8]) -> Result<M, Status> {
    M::parse_from_bytes(payload)
        .map_err(|error| Status::invalid(format!("malformed {}: {error}", M::NAME)))
}

/// The bytes of a message of rust-protobuf.
fn bytes<M: protobuf::Message>(message: &M) -> Result<Vec<u8>, Status> {
    message
        .write_to_bytes()
        .map_err(|error| Status::internal(format!("encode {}: {error}", M::NAME)))
}
