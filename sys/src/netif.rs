//! Network interfaces of the caller's network namespace.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::process::check;

/// The kernel's `struct ifreq` as SIOC[GS]IFFLAGS read it.
#[repr(C)]
struct FlagsRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; 22],
}

/// netdevice(7); libc has it as an int.
const IFF_UP: libc::c_short = 1;

/// Brings an interface up (`lo` of a new namespace is down). `ENODEV`: no such interface.
pub fn bring_up(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = FlagsRequest { name: [0; libc::IFNAMSIZ], flags: 0, unused: [0; 22] };
    let room = request.name.get_mut(..name.len()).filter(|room| room.len() < libc::IFNAMSIZ);
    room.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?
        .copy_from_slice(name.as_bytes());
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of a live ifreq-sized value.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) };
    check(ret.into())?;
    request.flags |= IFF_UP;
    // SAFETY: SIOCSIFFLAGS only reads a live ifreq-sized value.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    check(ret.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{self, Kind};

    #[test]
    fn loopback_of_a_new_namespace_answers_only_when_up() {
        std::thread::spawn(|| {
            ns::unshare(&[Kind::Net]).unwrap();
            let connect = || std::net::TcpStream::connect("127.0.0.1:9").unwrap_err();
            assert_eq!(connect().kind(), io::ErrorKind::NetworkUnreachable);
            bring_up("lo").unwrap();
            assert_eq!(connect().kind(), io::ErrorKind::ConnectionRefused);
            assert_eq!(bring_up("nosuch0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
            assert!(bring_up("a-name-far-too-long").is_err());
        })
        .join()
        .unwrap();
    }
}
