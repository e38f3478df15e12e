//! SPDY/3.1, the server's side, as far as Kubernetes uses it: streams that the client opens,
//! multiplexed over one connection. <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>
//!
//! - [`frame`]: frames from bytes and back, without I/O. What a fuzzer feeds: [`Parser`].
//! - [`headers`]: header blocks and their compression; `dictionary`: what both sides begin with.
//! - `session`: one connection; who reads it, who writes it, who waits for whom.
//! - `window`: flow control.
//!
//! Kubernetes' own client knows no flow control: it sends no WINDOW_UPDATE and waits for none. A
//! peer gets it, and is held to it, from its first SETTINGS or WINDOW_UPDATE on, with which those
//! clients begin that do know it. To the others TCP says when to wait.

mod dictionary;
pub mod frame;
pub mod headers;
mod session;
mod window;

pub use frame::{Frame, Parser, Reset};
pub use headers::Headers;
pub(super) use session::{Credit, Sender, Session, Stream};

/// What cannot be understood. The connection is of no more use then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not 3.
    #[error("SPDY version {0}, not 3")]
    Version(u32),
    /// A stream with the number 0.
    #[error("a stream has the number 0")]
    StreamZero,
    /// A control frame with less than belongs into it.
    #[error("a control frame is cut short")]
    Short,
    /// A control frame of unreasonable length.
    #[error("a control frame is too long")]
    Long,
    /// A header block.
    #[error("header block: {0}")]
    Headers(&'static str),
    /// The numbers of a client's streams are odd and grow.
    #[error("a client cannot open stream {0} now")]
    StreamNumber(u32),
    /// More answers wait for the client than it may let pile up.
    #[error("the client reads none of what it asks for")]
    Flood,
}
