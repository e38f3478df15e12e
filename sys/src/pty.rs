//! Pseudo terminals of any devpts instance, without trusting a path twice.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Both ends of a new terminal.
#[derive(Debug)]
pub struct Pty {
    /// The controlling program's end.
    pub master: OwnedFd,
    /// The end programs run on.
    pub slave: OwnedFd,
}

/// Takes an open ptmx file (read-write) as the master and opens its slave by the master itself
/// (TIOCGPTPEER), never by name. `EINVAL`: `ptmx` is no ptmx device.
pub fn from_ptmx(ptmx: OwnedFd) -> io::Result<Pty> {
    let stat = rustix::fs::fstat(&ptmx)?;
    if stat.st_rdev != rustix::fs::makedev(5, 2) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    rustix::pty::unlockpt(&ptmx)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&ptmx, flags)?;
    Ok(Pty { master: ptmx, slave })
}

/// Makes `slave` the controlling terminal of the caller, who must lead a session without one.
pub fn set_controlling(slave: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(slave)?)
}

/// Tells the programs on a terminal its size. Either end.
pub fn set_size(end: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(end, size)?)
}

/// Columns and rows.
pub fn size(end: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(end.as_fd())?;
    Ok((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    fn open(path: &str) -> OwnedFd {
        rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .unwrap()
    }

    #[test]
    fn bytes_pass_and_the_size_is_shared() {
        let pty = from_ptmx(open("/dev/ptmx")).unwrap();
        set_size(pty.master.as_fd(), 132, 43).unwrap();
        assert_eq!(size(pty.slave.as_fd()).unwrap(), (132, 43));
        rustix::io::write(&pty.slave, b"hi\n").unwrap();
        let mut buf = [0; 8];
        let len = rustix::io::read(&pty.master, &mut buf).unwrap();
        assert_eq!(&buf[..len], b"hi\r\n");
    }

    #[test]
    fn another_device_is_refused() {
        let err = from_ptmx(open("/dev/null")).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::EINVAL));
    }
}
