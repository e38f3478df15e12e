//! The unix socket that kubelet and crictl connect to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::lock::make_directory;

const BACKLOG: i32 = 128;
/// The bytes of `sun_path` but its closing NUL, unix(7).
const MAX_ADDRESS: usize = 107;

/// The socket. Clients can connect from the first moment on; they are answered once the daemon
/// serves.
#[derive(Debug)]
pub(super) struct Endpoint {
    socket: OwnedFd,
    path: PathBuf,
}

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something listens there.
    #[error("{}: another process listens on this socket", path.display())]
    Live {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that is no socket has the name.
    #[error("{}: exists and is not a socket", path.display())]
    NotSocket {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{doing} {}", path.display())]
    Io {
        /// Which.
        doing: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Endpoint {
    /// Makes the socket with mode 0600, replacing one that nobody listens on.
    pub(super) fn claim(path: &Path) -> Result<Self, Error> {
        let failed = |doing, source| Error::Io { doing, path: path.to_owned(), source };
        let dir = path.parent().unwrap_or(Path::new("/"));
        make_directory(dir).map_err(|source| failed("make the directory of", source))?;
        let address =
            Address::of(path).map_err(|source| failed("open the directory of", source))?;
        clear(path, &address)?;
        let socket = bind(&address).map_err(|errno| failed("bind", errno.into()))?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// The socket as tokio's; needs a runtime with I/O.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        UnixListener::from_std(self.socket.try_clone()?.into())
    }

    /// Takes the name away, at the end of service.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "the socket stays behind");
        }
    }
}

/// The name by which a socket is bound and reached. One that is too long for an address goes
/// through a descriptor of its directory.
struct Address {
    unix: SocketAddrUnix,
    _dir: Option<File>,
}

impl Address {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_ADDRESS {
            return Ok(Self { unix: SocketAddrUnix::new(path)?, _dir: None });
        }
        let parent = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = File::from(rustix::fs::open(parent, flags, Mode::empty())?);
        let name = path.file_name().unwrap_or_default();
        let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        Ok(Self { unix: SocketAddrUnix::new(&short)?, _dir: Some(dir) })
    }
}

/// Removes what a daemon left behind that is no more.
fn clear(path: &Path, address: &Address) -> Result<(), Error> {
    let failed = |doing, source| Error::Io { doing, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::NotSocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let probe = socket().map_err(|errno| failed("probe", errno.into()))?;
    match rustix::net::connect(&probe, &address.unix) {
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => {}
        Ok(()) | Err(rustix::io::Errno::AGAIN) => {
            return Err(Error::Live { path: path.to_owned() });
        }
        Err(errno) => return Err(failed("probe", errno.into())),
    }
    std::fs::remove_file(path).map_err(|source| failed("remove the stale", source))
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The mode is set before there is a name: Linux gives the file that of the socket's own inode
/// (less the umask), so at no instant is it open to others.
fn bind(address: &Address) -> rustix::io::Result<OwnedFd> {
    let socket = socket()?;
    rustix::fs::fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address.unix)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::daemon::test_dir::TestDir;

    #[tokio::test]
    async fn a_socket_is_private_and_takes_connections() {
        let dir = TestDir::new("endpoint");
        let path = dir.path().join("sub/berth.sock");
        let endpoint = Endpoint::claim(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        endpoint.listener().unwrap().accept().await.unwrap();
        endpoint.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let dir = TestDir::new("endpoint-live");
        let path = dir.path().join("berth.sock");
        let live = Endpoint::claim(&path).unwrap();
        assert!(matches!(Endpoint::claim(&path), Err(Error::Live { .. })));
        drop(live);
        assert!(path.exists());
        Endpoint::claim(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = TestDir::new("endpoint-file");
        let path = dir.path().join("berth.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Endpoint::claim(&path), Err(Error::NotSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_may_lie_deeper_than_an_address_is_long() {
        let dir = TestDir::new("endpoint-deep");
        let path = dir.path().join("d".repeat(100)).join("e".repeat(100)).join("berth.sock");
        let live = Endpoint::claim(&path).unwrap();
        assert!(path.exists());
        assert!(matches!(Endpoint::claim(&path), Err(Error::Live { .. })));
        drop(live);
        Endpoint::claim(&path).unwrap();
    }
}
