//! A process's end of a stream: a pipe or a terminal, without blocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A pipe's end or a terminal's master.
#[derive(Debug)]
pub(super) struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    /// Makes it non-blocking; all descriptors of the same open file become that.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe for types that swap descriptors")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self(fd))
    }

    /// Reads what is there into the room that `buffer` has; 0 at the end, which a terminal
    /// without users tells as EIO. The future may be dropped.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, spare_capacity(buffer))?);
        end_of_terminal(self.0.async_io(Interest::READABLE, read).await)
    }

    /// As [`Self::read`], but does not wait: `WouldBlock` where nothing is there.
    pub(super) fn try_read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        end_of_terminal(Ok(rustix::io::read(&self.0, spare_capacity(buffer))?))
    }

    /// Writes all of it; waits while nobody reads.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
            let count = self.0.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn end_of_terminal(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_and_the_end_is_seen() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (reader, writer) =
            (Pipe::new(reader.into()).unwrap(), Pipe::new(writer.into()).unwrap());
        let mut buffer = Vec::with_capacity(1 << 20);
        let nothing = reader.try_read(&mut buffer).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let bytes = vec![3; 500_000];
        let read_all = async {
            while reader.read(&mut buffer).await.unwrap() > 0 {}
            buffer.len()
        };
        let write_all = async {
            writer.write_all(&bytes).await.unwrap();
            drop(writer);
        };
        assert_eq!(tokio::join!(read_all, write_all).0, 500_000);
    }
}
