//! What a child and its maker say to each other over their message socket.
//!
//! Child to maker: warnings, `Born` (the handle of a process that it made for its maker), a
//! terminal's master, `Ready` (at the gate), `Executing` (right before
//! execve), `Failed`. The socket is close-on-exec: its end after `Executing` means that the
//! program runs. Maker to child: `Go` (the gate is open).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use berth_sys::{mount, sock};

use crate::error::Error;

/// Longest message; longer texts are cut.
const LIMIT: usize = 8192;

/// Why a child gave up.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A step failed.
    Step {
        /// What was being done, to what.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The program can't be executed.
    Exec {
        /// The whole text.
        message: String,
        /// The kernel's error number.
        errno: i32,
    },
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Step { step, source } => Self::Step { step, source },
            Failure::Exec { message, errno } => Self::Exec { message, errno },
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Step { step, source } => Self::Step { step, source },
            other => Self::Step { step: "prepare".into(), source: io::Error::other(other) },
        }
    }
}

/// What a child does.
pub(crate) type Work<T> = Result<T, Failure>;

/// Names the step a system error happened in.
pub(crate) trait Doing<T> {
    /// `step` says what was being done, to what.
    fn doing(self, step: impl FnOnce() -> String) -> Work<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, step: impl FnOnce() -> String) -> Work<T> {
        self.map_err(|source| Failure::Step { step: step(), source: source.into() })
    }
}

/// A failure without a system error behind it.
pub(crate) fn refuse<T>(step: String, why: &str) -> Work<T> {
    Err(Failure::Step { step, source: io::Error::new(io::ErrorKind::InvalidInput, why) })
}

/// What a child says.
#[derive(Debug)]
pub(crate) enum Said {
    /// One sentence for the log.
    Warning(String),
    /// The terminal's master side.
    Terminal(OwnedFd),
    /// It made this process, a child of its maker.
    Born(OwnedFd),
    /// Waits at the gate.
    Ready,
    /// About to execve.
    Executing,
    /// Gives up.
    Failed(Failure),
    /// The socket has ended.
    End,
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct ChildEnd(OwnedFd);

impl ChildEnd {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(crate) fn warn(&self, text: &str) -> Work<()> {
        self.send(b'w', text.as_bytes(), &[])
    }

    pub(crate) fn terminal(&self, master: BorrowedFd<'_>) -> Work<()> {
        self.send(b't', b"", &[master])
    }

    pub(crate) fn born(&self, pidfd: BorrowedFd<'_>) -> Work<()> {
        self.send(b'b', b"", &[pidfd])
    }

    pub(crate) fn ready(&self) -> Work<()> {
        self.send(b'r', b"", &[])
    }

    pub(crate) fn executing(&self) -> Work<()> {
        self.send(b'x', b"", &[])
    }

    /// The last word. A maker that is gone needs none.
    pub(crate) fn failed(&self, failure: &Failure) {
        let (kind, errno, text) = match failure {
            Failure::Step { step, source } => {
                (b's', mount::errno(source), format!("{step}\0{}", crate::error::words(source)))
            }
            Failure::Exec { message, errno } => (b'e', *errno, message.clone()),
        };
        let mut bytes = errno.to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        let _ = self.send(kind, &bytes, &[]);
    }

    /// Waits for the gate to open.
    pub(crate) fn wait_go(&self) -> Work<()> {
        let step = || "wait for the start".to_owned();
        let message = sock::receive(self.as_fd(), 16, true).doing(step)?;
        if message.bytes == b"g" { Ok(()) } else { refuse(step(), "the maker is gone") }
    }

    fn send(&self, kind: u8, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Work<()> {
        let mut message = vec![kind];
        message.extend(bytes.iter().take(LIMIT - 1));
        sock::send(self.as_fd(), &message, fds).doing(|| "report".to_owned())
    }
}

/// Opens the gate.
pub(crate) fn say_go(socket: BorrowedFd<'_>) -> io::Result<()> {
    sock::send(socket, b"g", &[])
}

/// The child's next word. `EAGAIN`: none now.
pub(crate) fn hear(socket: BorrowedFd<'_>) -> io::Result<Said> {
    let mut message = match sock::receive(socket, LIMIT, false) {
        // The child ended with a word of ours unread. Told once; what it said comes after.
        Err(err) if err.kind() == io::ErrorKind::ConnectionReset => {
            sock::receive(socket, LIMIT, false)?
        }
        other => other?,
    };
    let Some((kind, rest)) = message.bytes.split_first() else { return Ok(Said::End) };
    let text = || String::from_utf8_lossy(rest).into_owned();
    match (kind, message.fds.pop()) {
        (b'w', _) => Ok(Said::Warning(text())),
        (b't', Some(master)) => Ok(Said::Terminal(master)),
        (b'b', Some(pidfd)) => Ok(Said::Born(pidfd)),
        (b'r', _) => Ok(Said::Ready),
        (b'x', _) => Ok(Said::Executing),
        (b's' | b'e', _) => failure(*kind, rest).map(Said::Failed),
        _ => Err(unknown()),
    }
}

fn failure(kind: u8, rest: &[u8]) -> io::Result<Failure> {
    let (errno, text) = rest.split_first_chunk::<4>().ok_or_else(unknown)?;
    let errno = i32::from_le_bytes(*errno);
    let text = String::from_utf8_lossy(text);
    if kind == b'e' {
        return Ok(Failure::Exec { message: text.into_owned(), errno });
    }
    let (step, said) = text.split_once('\0').unwrap_or((&text, ""));
    let plain = io::Error::from_raw_os_error(errno);
    let source = if errno != 0 && crate::error::words(&plain) == said {
        plain
    } else {
        io::Error::new(plain.kind(), said.to_owned())
    };
    Ok(Failure::Step { step: step.to_owned(), source })
}

fn unknown() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unknown message from the container's child")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_keep_their_step_text_and_number() {
        let (ours, theirs) = sock::message_pair().unwrap();
        let child = ChildEnd::new(theirs);
        let source = io::Error::from_raw_os_error(13);
        child.failed(&Failure::Step { step: "mount /x (bind from /y)".into(), source });
        child.failed(&Failure::Exec { message: "exec: \"/x\": no".into(), errno: 2 });
        let text = |said| match said {
            Said::Failed(failure) => Error::from(failure).to_string(),
            other => format!("{other:?}"),
        };
        let first = hear(ours.as_fd()).unwrap();
        assert_eq!(text(first), "mount /x (bind from /y): permission denied");
        assert_eq!(text(hear(ours.as_fd()).unwrap()), "exec: \"/x\": no");
        drop(child);
        assert!(matches!(hear(ours.as_fd()).unwrap(), Said::End));
    }

    #[test]
    fn last_words_are_heard_though_the_child_heard_nothing() {
        let (ours, theirs) = sock::message_pair().unwrap();
        let child = ChildEnd::new(theirs);
        child.ready().unwrap();
        say_go(ours.as_fd()).unwrap();
        drop(child);
        assert!(matches!(hear(ours.as_fd()).unwrap(), Said::Ready));
        assert!(matches!(hear(ours.as_fd()).unwrap(), Said::End));
    }
}
