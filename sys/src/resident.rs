//! What a small process needs that stays for months: to leave its launcher behind, to hear
//! signals as descriptors, and to keep no memory it does not use.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of a fork the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The process that called; holds the child's process id.
    Parent(u32),
    /// The new process.
    Child,
}

/// Forks the calling process, which must have one thread: a lock held by another thread would
/// stay locked in the child for ever.
///
/// Errors: [`io::ErrorKind::Unsupported`] with more than one thread; `fork(2)`.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let text = format!("fork in a process of {threads} threads");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    // SAFETY: with a single thread, checked above, no lock can be held by a thread that the child
    // lacks, so the child may go on as any program does.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(u32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Signals that arrive at a descriptor instead of a handler.
///
/// They are blocked for the calling thread, and a fork inherits that: a child must empty its
/// signal mask before it executes a foreign program.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals with these numbers and opens the descriptor: close-on-exec,
    /// non-blocking. Errors: `sigprocmask(2)`, `signalfd(2)`.
    pub fn block(numbers: &[i32]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is valid for writes of a sigset_t, and the call initialises it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by sigemptyset, which cannot fail with a valid pointer.
        let mut set = unsafe { set.assume_init() };
        for &number in numbers {
            // SAFETY: `set` is an initialised set; a bad number is answered with an error.
            if unsafe { libc::sigaddset(&raw mut set, number) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is initialised and lives through the call; the old mask is not asked for.
        let blocked =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The number of the next signal that came; `None`: no more now.
    pub fn next(&self) -> io::Result<Option<i32>> {
        /// `struct signalfd_siginfo` starts with the number, a u32.
        const INFO_LEN: usize = 128;
        let mut info = [0_u8; INFO_LEN];
        match rustix::io::read(&self.0, &mut info) {
            Ok(INFO_LEN) => {
                let [a, b, c, d, ..] = info;
                Ok(i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok())
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes the allocator give memory back: one arena, blocks from 64 KiB on get pages of their own,
/// and the heap's free end is returned early. Call once, first thing.
pub fn keep_memory_small() {
    const SETTINGS: [(libc::c_int, libc::c_int); 4] = [
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_THRESHOLD, 64 << 10),
        (libc::M_TRIM_THRESHOLD, 32 << 10),
        (libc::M_TOP_PAD, 0),
    ];
    for (name, value) in SETTINGS {
        // SAFETY: mallopt takes any values; unknown ones change nothing.
        unsafe { libc::mallopt(name, value) };
    }
}

/// Gives free heap pages back to the kernel.
pub fn trim_memory() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_several_threads_is_not_forked() {
        // The test harness runs this test on a thread of its own.
        let error = fork().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_blocked_signal_is_read_from_the_descriptor() {
        // A thread of its own, so that the mask goes with it.
        std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR2]).unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: raises a signal that this thread blocks.
            unsafe { libc::raise(libc::SIGUSR2) };
            assert_eq!(signals.next().unwrap(), Some(libc::SIGUSR2));
            assert_eq!(signals.next().unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn memory_can_be_trimmed() {
        keep_memory_small();
        drop(vec![1_u8; 256 << 10]);
        trim_memory();
    }
}
