//! The counters of a pod's network interfaces.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use berth_sys::ns::{self, Kind};

/// One interface, as the pod sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Inside the pod.
    pub name: String,
    /// Received.
    pub rx_bytes: u64,
    /// Not received well.
    pub rx_errors: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Not sent well.
    pub tx_errors: u64,
}

/// All interfaces but `lo` of a pinned namespace. Blocks; joins it on a thread of its own, which
/// ends with that.
pub fn read(netns: &Path) -> io::Result<Vec<Interface>> {
    let namespace = ns::open(netns)?;
    let read = std::thread::Builder::new().name("netns-stats".to_owned()).spawn(move || {
        ns::join(namespace.as_fd(), Kind::Net)?;
        std::fs::read_to_string("/proc/thread-self/net/dev")
    })?;
    let text = read.join().map_err(|_| io::Error::other("reading the interfaces failed"))??;
    Ok(parse(&text))
}

/// net/dev: after two lines of headings `NAME: ` and 16 numbers, 8 of each direction.
fn parse(text: &str) -> Vec<Interface> {
    let one = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> =
            numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let at = |n: usize| numbers.get(n).copied();
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0)?,
            rx_errors: at(2)?,
            tx_bytes: at(8)?,
            tx_errors: at(10)?,
        })
    };
    text.lines().filter_map(one).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_from_their_lines() {
        let text = "Inter-|   Receive                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n\
                    lo:     100       1    0    0    0     0          0         0      100 1 0 0 0 0 0 0\n\
                    eth0: 1500      10    2    0    0     0          0         0      700 5 3 0 0 0 0 0\n\
                    odd0: 1 2\n";
        let eth0 = Interface {
            name: "eth0".into(),
            rx_bytes: 1500,
            rx_errors: 2,
            tx_bytes: 700,
            tx_errors: 3,
        };
        assert_eq!(parse(text), [eth0]);
    }
}
