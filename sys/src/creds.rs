//! Who a process is and what it may do: ids, capabilities, limits. All act on the calling thread
//! (raw system calls, no signalling of other threads): for single-threaded children.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::process::check;

/// Highest capability number this crate names (CAP_CHECKPOINT_RESTORE).
const LAST_CAP: u32 = 40;

/// Names by number (linux/capability.h).
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets of capabilities(7), as bit masks by capability number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What execve can ever give.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// Kept over execve for files that allow it.
    pub inheritable: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// Kept over execve without root.
    pub ambient: u64,
}

/// What the calling process has.
pub fn capabilities() -> io::Result<Capabilities> {
    let sets = rustix::thread::capabilities(None)?;
    let (mut bounding, mut ambient) = (0, 0);
    for cap in 0..=LAST_CAP {
        // EINVAL: this kernel doesn't know the capability, so nobody has it.
        if prctl(libc::PR_CAPBSET_READ, u64::from(cap), 0).is_ok_and(|has| has == 1) {
            bounding |= 1 << cap;
        }
        let is_set = u64::from(libc::PR_CAP_AMBIENT_IS_SET.unsigned_abs());
        if prctl(libc::PR_CAP_AMBIENT, is_set, u64::from(cap)).is_ok_and(|has| has == 1) {
            ambient |= 1 << cap;
        }
    }
    Ok(Capabilities {
        bounding,
        effective: sets.effective.bits(),
        inheritable: sets.inheritable.bits(),
        permitted: sets.permitted.bits(),
        ambient,
    })
}

/// Takes everything outside `keep` from the bounding set. Needs CAP_SETPCAP.
pub fn drop_bounding(keep: u64) -> io::Result<()> {
    for cap in 0..=LAST_CAP {
        if keep & (1 << cap) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, u64::from(cap), 0) {
            Err(err) if err.raw_os_error() != Some(libc::EINVAL) => return Err(err),
            _ => {}
        }
    }
    Ok(())
}

/// Sets permitted, effective and inheritable, then the ambient set (which needs the former).
pub fn set_capabilities(caps: &Capabilities) -> io::Result<()> {
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets {
        effective: set(caps.effective),
        permitted: set(caps.permitted),
        inheritable: set(caps.inheritable),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::clear_ambient_capability_set()?;
    let raise = u64::from(libc::PR_CAP_AMBIENT_RAISE.unsigned_abs());
    for cap in (0..=LAST_CAP).filter(|cap| caps.ambient & (1 << cap) != 0) {
        prctl(libc::PR_CAP_AMBIENT, raise, u64::from(cap))?;
    }
    Ok(())
}

/// Sets all user ids, group ids and supplementary groups. Permitted capabilities survive a change
/// away from root, so that the caller can then choose what to keep.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::set_keep_capabilities(true)?;
    let list: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    rustix::thread::set_thread_groups(&list)?;
    let gid = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_keep_capabilities(false)?;
    Ok(())
}

/// Has the calling thread own what it makes in file systems as these ids, and keeps all the rights
/// it has.
pub fn set_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    let have = rustix::thread::capabilities(None)?;
    for (call, id) in [(libc::SYS_setfsgid, gid), (libc::SYS_setfsuid, uid)] {
        // SAFETY: takes a number only. It answers with the id before, whether it worked or not.
        unsafe { libc::syscall(call, id) };
        // SAFETY: takes a number only; -1 changes nothing.
        if unsafe { libc::syscall(call, -1) } != i64::from(id) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    // Leaving root took those that concern files from the effective set.
    Ok(rustix::thread::set_capabilities(None, have)?)
}

/// Joins a new, empty session keyring, so that keys of whoever made this process aren't possessed
/// by what it executes (keyrings(7)). A kernel without keys has none to leak.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: takes a number and a null name, which asks for an anonymous keyring.
    let ret = unsafe {
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    match check(ret) {
        Err(err) if err.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other,
    }
}

/// execve never raises privileges again. Can't be taken back.
pub fn set_no_new_privs() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// A resource limit of the calling process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// What is enforced.
    pub soft: u64,
    /// What the soft limit may be raised to.
    pub hard: u64,
}

/// Reads the limit numbered `resource` (`RLIMIT_*`).
pub fn rlimit(resource: u32) -> io::Result<Rlimit> {
    prlimit(resource, None)
}

/// Sets it. `EPERM`: raising the hard limit needs CAP_SYS_RESOURCE.
pub fn set_rlimit(resource: u32, limit: Rlimit) -> io::Result<()> {
    prlimit(resource, Some(limit)).map(drop)
}

fn prlimit(resource: u32, new: Option<Rlimit>) -> io::Result<Rlimit> {
    let new = new.map(|l| libc::rlimit64 { rlim_cur: l.soft, rlim_max: l.hard });
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both pointers are to live rlimit64 values, or null for "leave it". Pid 0 is the caller.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            std::ptr::from_mut(&mut old),
        )
    };
    check(ret)?;
    Ok(Rlimit { soft: old.rlim_cur, hard: old.rlim_max })
}

fn prctl(option: i32, arg2: u64, arg3: u64) -> io::Result<i64> {
    // SAFETY: the options of this module take numbers only.
    let ret = unsafe { libc::syscall(libc::SYS_prctl, option, arg2, arg3, 0, 0) };
    check(ret)?;
    Ok(ret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_drops_capabilities_and_identity_for_itself_alone() {
        let before = capabilities().unwrap();
        let net_bind = 1 << 10;
        let after = std::thread::spawn(move || {
            drop_bounding(net_bind).unwrap();
            become_user(1234, 2345, &[7, 8]).unwrap();
            let caps = Capabilities {
                bounding: net_bind,
                effective: net_bind,
                inheritable: net_bind,
                permitted: net_bind,
                ambient: net_bind,
            };
            set_capabilities(&caps).unwrap();
            set_no_new_privs().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            for line in
                ["Uid:\t1234\t1234\t1234\t1234", "Gid:\t2345\t2345\t2345\t2345", "Groups:\t7 8"]
            {
                assert!(status.contains(line), "{line} in {status}");
            }
            (capabilities().unwrap(), caps)
        })
        .join()
        .unwrap();
        assert_eq!(after.0, after.1);
        assert_eq!(capabilities().unwrap(), before, "other threads keep theirs");
    }

    #[test]
    fn what_is_made_belongs_to_the_file_ids_and_no_right_is_lost() {
        use std::os::unix::fs::MetadataExt;
        let path = std::env::temp_dir().join(format!("berth-fs-ids-{}", std::process::id()));
        std::thread::spawn({
            let path = path.clone();
            move || {
                let before = capabilities().unwrap();
                set_fs_ids(70_000, 70_001).unwrap();
                assert_eq!(capabilities().unwrap(), before);
                // The temporary directory may be anyone's: the right to pass over that is kept.
                std::fs::create_dir(&path).unwrap();
            }
        })
        .join()
        .unwrap();
        let made = std::fs::metadata(&path).unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert_eq!((made.uid(), made.gid()), (70_000, 70_001));
    }

    #[test]
    fn each_session_keyring_is_another() {
        std::thread::spawn(|| {
            // KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING.
            // SAFETY: takes numbers only.
            let id = || unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) };
            new_session_keyring().unwrap();
            let first = id();
            new_session_keyring().unwrap();
            assert_ne!(first, id());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn limits_are_lowered_and_read_back() {
        let was = rlimit(libc::RLIMIT_CORE).unwrap();
        let lower = Rlimit { soft: 0, hard: was.hard };
        set_rlimit(libc::RLIMIT_CORE, lower).unwrap();
        assert_eq!(rlimit(libc::RLIMIT_CORE).unwrap(), lower);
        set_rlimit(libc::RLIMIT_CORE, was).unwrap();
    }
}
