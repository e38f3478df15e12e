//! Sockets in a pod's network namespace. A socket stays where it was made, so that it can be
//! connected and used from anywhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use berth_sys::ns;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// Unconnected TCP sockets: for IPv4, and for IPv6 where the machine has that.
pub(super) async fn sockets(netns: Option<&Path>) -> io::Result<(TcpSocket, Option<TcpSocket>)> {
    let (v4, v6) = match netns {
        None => make()?,
        Some(path) => made_in(path.to_owned()).await?,
    };
    Ok((adopt(v4)?, v6.map(adopt).transpose()?))
}

/// On a thread of its own, which ends there: a pooled one would carry the namespace on.
async fn made_in(netns: PathBuf) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("in-netns".to_owned()).spawn(move || {
        let made = ns::open(&netns)
            .and_then(|namespace| ns::join(namespace.as_fd(), ns::Kind::Net))
            .and_then(|()| make());
        // Who asked may have gone.
        let _unheard = tell.send(made);
    })?;
    told.await.map_err(io::Error::other)?
}

fn make() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let v4 = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    let v6 = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).ok();
    Ok((v4, v6))
}

fn adopt(socket: OwnedFd) -> io::Result<TcpSocket> {
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.set_nodelay(true)?;
    Ok(socket)
}
