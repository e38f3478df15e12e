//! Unix sockets: message pairs that carry descriptors, and sockets at paths of any length.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Descriptors one message carries at most.
pub const MAX_FDS: usize = 8;

/// A connected pair whose messages keep their borders.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (unix, seq) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(unix, seq, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message, with up to [`MAX_FDS`] descriptors. `EPIPE`: the other end is gone.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_some(socket, bytes, fds).map(drop)
}

/// As [`send`], for a stream socket, which may take a part of the bytes: tells how many. The
/// descriptors go with the first of them.
pub fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let send =
        || rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    Ok(rustix::io::retry_on_intr(send)?)
}

/// A received message.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes; empty at the end of the stream.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Receives one message of at most `limit` bytes. `wait` false: `EAGAIN` where none is there.
pub fn receive(socket: BorrowedFd<'_>, limit: usize, wait: bool) -> io::Result<Message> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    let receive =
        || rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
    let len = rustix::io::retry_on_intr(receive)?.bytes;
    bytes.truncate(len);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(Message { bytes, fds })
}

/// A path for a socket `name` in `dir` that fits the address limit of 108 bytes whatever the
/// directory's own path is. Valid in this process while `dir` is open; needs /proc.
#[must_use]
pub fn short_path(dir: BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Binds a listening stream socket `name` in the directory `dir`. `EADDRINUSE`: it exists.
pub fn listen_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixListener> {
    UnixListener::bind(short_path(dir, name))
}

/// Connects to the stream socket `name` in the directory `dir`.
pub fn connect_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixStream> {
    UnixStream::connect(short_path(dir, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn messages_keep_their_borders_and_carry_descriptors() {
        let (a, b) = message_pair().unwrap();
        let none = receive(b.as_fd(), 16, false).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(a.as_fd(), b"one", &[]).unwrap();
        send(a.as_fd(), b"two", &[writer.as_fd()]).unwrap();
        drop(writer);
        assert_eq!(receive(b.as_fd(), 16, true).unwrap().bytes, b"one");
        let mut two = receive(b.as_fd(), 16, true).unwrap();
        let mut passed = std::fs::File::from(two.fds.pop().unwrap());
        passed.write_all(b"through").unwrap();
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(a);
        assert!(receive(b.as_fd(), 16, true).unwrap().bytes.is_empty());
    }

    #[test]
    fn a_stream_takes_what_fits_and_descriptors_with_its_first_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        let long = vec![1; 16 << 20];
        let sent = send_some(a.as_fd(), &long, &[writer.as_fd()]).unwrap();
        assert!((1..long.len()).contains(&sent), "{sent}");
        let full = send_some(a.as_fd(), &long, &[]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let first = receive(b.as_fd(), 10, true).unwrap();
        assert_eq!((first.bytes.len(), first.fds.len()), (10, 1));
        assert_eq!(receive(b.as_fd(), 10, true).unwrap().fds.len(), 0);
    }

    #[test]
    fn a_socket_lives_at_a_path_longer_than_an_address() {
        let base = std::env::temp_dir().join(format!("berth-sock-{}", std::process::id()));
        let deep = base.join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let dir = std::fs::File::open(&deep).unwrap();
        let listener = listen_at(dir.as_fd(), "s.sock").unwrap();
        let mut client = connect_at(dir.as_fd(), "s.sock").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        std::fs::remove_dir_all(base).unwrap();
    }
}
