//! Small programs that the kernel runs: bpf(2), as far as device rules of cgroup v2 need it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::process::check;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Beside programs of others on the same directory and above; all must agree.
const ALLOW_MULTI: u32 = 1 << 1;

/// The kernel's `struct bpf_insn` (linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation and its class.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// How far to jump, or where in memory.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that attaches one.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel check a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` (kernel 4.15). It answers
/// 1 to allow and 0 to deny. `EINVAL`, `EACCES`: it isn't one the kernel would run. `EPERM`: not
/// allowed to. It goes when neither the descriptor nor a cgroup holds it.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let address = |pointer: *const u8| pointer.expose_provenance() as u64;
    let count = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count,
        instructions: address(program.as_ptr().cast()),
        license: address(c"Apache-2.0".as_ptr().cast()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"berth_devices\0\0\0",
    };
    // SAFETY: `attributes` is a live bpf_attr of the size given; the instructions, `count` of
    // them, and the license, a C string, live past the call, which copies both.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, std::ptr::from_ref(&attributes), size_of::<Load>())
    };
    check(fd)?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: a descriptor that the kernel just made (close-on-exec by itself), nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has a cgroup v2 directory ask the program whenever a process in it, or below it, opens or
/// makes a device file. The directory holds the program until it is removed.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX);
    let attributes = Attach {
        target: number(cgroup),
        program: number(program),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attributes` is a live bpf_attr of the size given, and holds two open descriptors.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            std::ptr::from_ref(&attributes),
            size_of::<Attach>(),
        )
    };
    check(done).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;
    use crate::cgroupfs::{self, Mounted};

    /// `r0 = answer; exit`.
    fn always(answer: i32) -> [Instruction; 2] {
        let instruction =
            |code, immediate| Instruction { code, registers: 0, offset: 0, immediate };
        [instruction(0xb7, answer), instruction(0x95, 0)]
    }

    #[test]
    fn a_program_without_an_end_is_refused() {
        let err = load_device_program(&always(0)[..1]).unwrap_err();
        assert!(matches!(err.raw_os_error(), Some(libc::EINVAL | libc::EACCES)), "{err}");
    }

    #[test]
    fn a_cgroup_opens_what_its_program_allows() {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(std::path::Path::new);
        let v2 = |root: &&&std::path::Path| {
            cgroupfs::mounted(root).is_ok_and(|mounted| mounted == Mounted::V2)
        };
        let root = roots.iter().find(v2).expect("a cgroup v2 hierarchy");
        let name = |answer: i32| format!("berth-test-bpf-{}-{answer}", std::process::id());
        for answer in [0, 1] {
            let dir = root.join(name(answer));
            std::fs::create_dir(&dir).unwrap();
            let program = load_device_program(&always(answer)).unwrap();
            let cgroup = std::fs::File::open(&dir).unwrap();
            attach_device_program(cgroup.as_fd(), program.as_fd()).unwrap();
            drop(program);
            let script = format!("echo $$ >{}/cgroup.procs; exec 3</dev/full", dir.display());
            let status = Command::new("sh").args(["-c", &script]).status().unwrap();
            std::fs::remove_dir(&dir).unwrap();
            assert_eq!(status.success(), answer == 1);
        }
    }
}
