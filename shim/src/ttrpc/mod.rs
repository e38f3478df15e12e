//! A ttrpc server on the poll loop: framing, connections, replies.
//!
//! One thread serves every client. A call is answered by its [`ReplyTo`], at once or at any later
//! time: a call that waits (Wait, ExecSync) is a number kept somewhere, not a thread.

mod conn;
mod frame;
mod message;
mod server;
mod status;

pub(crate) use frame::MAX_PAYLOAD;
pub(crate) use server::{Call, ReplyTo, Server};
pub(crate) use status::{Code, Status};
