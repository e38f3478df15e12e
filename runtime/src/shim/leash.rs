//! A connection to a shim of one exec or attach alone. On it the shim passes the process's ends
//! once, by SCM_RIGHTS, and later says how it ended. When it closes, whoever had the streams is
//! gone: the shim ends the command, or forgets the reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use berth_proto::paths::PodPaths;
use berth_proto::shim as own;
use berth_sys::sock;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::ttrpc;
use prost::Message;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::ShimError;
use super::client::{dial, kind};
use crate::stream::Wanted;

/// Until the streams are there. A program on a slow volume takes its time to load.
const OPEN: Duration = Duration::from_secs(60);
/// ttrpc: length, stream, type, flags.
const HEAD: usize = 10;
/// The longest answer: an id, a code, some words.
const MAX_ANSWER: usize = 64 << 10;

/// What is to be opened.
#[derive(Debug, Clone)]
pub enum Open {
    /// The streams of this command, which is executed for that.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
        /// Which streams.
        wanted: Wanted,
    },
    /// The streams of the first process.
    Attach {
        /// Which streams.
        wanted: Wanted,
    },
}

/// Our ends of a process's streams.
#[derive(Debug, Default)]
pub struct Ends {
    /// Written to.
    pub stdin: Option<OwnedFd>,
    /// Read from.
    pub stdout: Option<OwnedFd>,
    /// Read from.
    pub stderr: Option<OwnedFd>,
    /// The terminal's master.
    pub terminal: Option<OwnedFd>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The command's, 0-255. None: it was an attach.
    pub exit_code: Option<u32>,
    /// The reader of an attach was too slow and gets no more.
    pub dropped: bool,
}

/// The connection. Dropping it ends what it was opened for.
#[derive(Debug)]
pub struct Leash {
    socket: UnixStream,
    stream: u32,
    received: Vec<u8>,
    attached: bool,
}

impl Leash {
    /// Asks the pod's shim for streams of a container.
    pub async fn open(
        paths: &PodPaths,
        container: &str,
        open: Open,
    ) -> Result<(Self, Ends), ShimError> {
        let opened = async {
            let attached = matches!(open, Open::Attach { .. });
            let socket = dial(paths).await?;
            let mut leash = Self { socket, stream: 1, received: Vec::new(), attached };
            let container_id = container.to_owned();
            let (kinds, fds) = match open {
                Open::Exec { argv, wanted } => {
                    let Wanted { stdin, stdout, stderr, tty: terminal } = wanted;
                    let request =
                        own::ExecRequest { container_id, argv, stdin, stdout, stderr, terminal };
                    let (answer, fds) = leash.call::<own::ExecResponse>("Exec", &request).await?;
                    (answer.streams, fds)
                }
                Open::Attach { wanted: Wanted { stdin, stdout, stderr, .. } } => {
                    let request = own::AttachRequest { container_id, stdin, stdout, stderr };
                    let (answer, fds) =
                        leash.call::<own::AttachResponse>("Attach", &request).await?;
                    (answer.streams, fds)
                }
            };
            Ok((leash, ends(&kinds, fds)?))
        };
        let seconds = OPEN.as_secs();
        let late = || ShimError::Deadline { method: "open streams", seconds };
        tokio::time::timeout(OPEN, opened).await.unwrap_or_else(|_| Err(late()))
    }

    /// Waits for the end of the process, or of the attach.
    pub async fn wait(&mut self) -> Result<Ending, ShimError> {
        let request = own::WaitStreamsRequest {};
        let (answer, _) = self.call::<own::WaitStreamsResponse>("WaitStreams", &request).await?;
        let exit_code = (!self.attached).then_some(answer.exit_code);
        Ok(Ending { exit_code, dropped: answer.dropped })
    }

    async fn call<A: Message + Default>(
        &mut self,
        method: &'static str,
        message: &impl Message,
    ) -> Result<(A, Vec<OwnedFd>), ShimError> {
        let gone = |_| ShimError::Gone { method };
        let garbled = || ShimError::Garbled { method };
        let mut request = ttrpc::Request::new();
        own::SERVICE.clone_into(&mut request.service);
        method.clone_into(&mut request.method);
        request.payload = message.encode_to_vec();
        let request = request.write_to_bytes().map_err(|_| garbled())?;
        let frame = frame(self.stream, &request);
        self.stream = self.stream.wrapping_add(2);
        self.socket.write_all(&frame).await.map_err(gone)?;
        let mut fds = Vec::new();
        let answer = loop {
            if let Some(answer) = take_answer(&mut self.received).ok_or_else(garbled)? {
                break answer;
            }
            let message = receive(&self.socket).await.map_err(gone)?;
            if message.bytes.is_empty() {
                return Err(ShimError::Gone { method });
            }
            self.received.extend_from_slice(&message.bytes);
            fds.extend(message.fds);
        };
        let answer = ttrpc::Response::parse_from_bytes(&answer).map_err(|_| garbled())?;
        match answer.status.into_option().filter(|status| status.code() != ttrpc::Code::OK) {
            Some(status) => {
                let message = status.message().to_owned();
                Err(ShimError::Answer { kind: kind(status.code()), message })
            }
            None => Ok((A::decode(answer.payload.as_slice()).map_err(|_| garbled())?, fds)),
        }
    }
}

async fn receive(socket: &UnixStream) -> io::Result<sock::Message> {
    socket.async_io(Interest::READABLE, || sock::receive(socket.as_fd(), HEAD + 4096, false)).await
}

/// A request as ttrpc has it on the wire.
fn frame(stream: u32, request: &[u8]) -> Vec<u8> {
    const REQUEST: u8 = 1;
    let length = u32::try_from(request.len()).unwrap_or(u32::MAX);
    let head = [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[REQUEST, 0]].concat();
    [&head[..], request].concat()
}

/// A whole answer off the front. `None` outside: it is too long.
#[expect(clippy::option_option, reason = "none yet, and never, are two things")]
fn take_answer(received: &mut Vec<u8>) -> Option<Option<Vec<u8>>> {
    let Some(length) = received.first_chunk::<4>() else { return Some(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    if length > MAX_ANSWER {
        return None;
    }
    if received.len() < HEAD + length {
        return Some(None);
    }
    let rest = received.split_off(HEAD + length);
    let answer = std::mem::replace(received, rest).split_off(HEAD);
    Some(Some(answer))
}

/// Which descriptor is which end.
fn ends(kinds: &[i32], fds: Vec<OwnedFd>) -> Result<Ends, ShimError> {
    let garbled = || ShimError::Garbled { method: "open streams" };
    if kinds.len() != fds.len() {
        return Err(garbled());
    }
    let mut ends = Ends::default();
    for (kind, fd) in kinds.iter().zip(fds) {
        let end = match own::StreamKind::try_from(*kind) {
            Ok(own::StreamKind::Stdin) => &mut ends.stdin,
            Ok(own::StreamKind::Stdout) => &mut ends.stdout,
            Ok(own::StreamKind::Stderr) => &mut ends.stderr,
            Ok(own::StreamKind::Terminal) => &mut ends.terminal,
            Ok(own::StreamKind::None) | Err(_) => return Err(garbled()),
        };
        *end = Some(fd);
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_in_any_pieces() {
        let whole = [frame(1, b"hello"), frame(3, b"")].concat();
        let mut received = Vec::new();
        let mut answers = Vec::new();
        for byte in whole {
            received.push(byte);
            answers.extend(take_answer(&mut received).unwrap());
        }
        assert_eq!(answers, [b"hello".to_vec(), Vec::new()]);
        assert_eq!(take_answer(&mut vec![0xff; 10]), None);
    }

    #[test]
    fn ends_must_be_what_they_are_said_to_be() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let two = [own::StreamKind::Stdin.into(), own::StreamKind::Stderr.into()];
        let got = ends(&two, vec![null(), null()]).unwrap();
        assert!(got.stdin.is_some() && got.stderr.is_some() && got.stdout.is_none());
        assert!(ends(&two, vec![null()]).is_err());
        assert!(ends(&[0], vec![null()]).is_err());
        assert!(ends(&[77], vec![null()]).is_err());
    }
}
