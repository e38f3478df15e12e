//! The envelope messages of ttrpc: `request.proto` of the ttrpc project, written out.

use prost::Message;

/// A call.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    /// For example `containerd.task.v3.Task`.
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    /// For example `Create`.
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    /// The encoded message of the method.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) payload: Vec<u8>,
    // timeout_nano (4) and metadata (5) are not needed here: a client that stops waiting goes
    // away or ignores the answer, and the work goes on for whoever asks again.
}

/// An answer.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    /// Absent: success.
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<RpcStatus>,
    /// The encoded answer of the method.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RpcStatus {
    /// A gRPC code.
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}
