//! Tells systemd how far the daemon is, sd_notify(3). Without systemd it does nothing.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The daemon serves.
pub(super) fn ready() {
    tell("READY=1");
}

/// The daemon has been asked to end.
pub(super) fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(?socket, %error, "systemd was not told {state}");
    }
}

/// A name that begins with `@` lies in the abstract namespace, unix(7).
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_dir::TestDir;

    #[test]
    fn a_state_reaches_the_socket() {
        let dir = TestDir::new("notify");
        let path = dir.path().join("notify.sock");
        let named = UnixDatagram::bind(&path).unwrap();
        let name = format!("berth-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        let abstract_name = format!("@{name}");
        for (socket, at) in [(named, path.as_os_str()), (hidden, OsStr::new(&abstract_name))] {
            send(at, "READY=1").unwrap();
            let mut bytes = [0; 16];
            let length = socket.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1");
        }
    }
}
