//! A file system that can be cut off its disk.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_sys::fsctl::{Shutdown, shut_down};

/// The least that mkfs.xfs takes is 300 MiB. Little of it is ever written.
const DISK: u64 = 320 << 20;

/// Unmounted and given back when dropped.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    device: String,
    /// Its loop device, which goes with it.
    looped: bool,
    kind: String,
    options: String,
}

pub(crate) fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// With the directories of system programs, whatever the caller's path.
fn program(name: &str) -> Command {
    let dirs = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    Command::new(dirs.into_iter().find(|path| path.exists()).unwrap_or_else(|| name.into()))
}

impl Disk {
    pub(crate) fn new() -> Self {
        // In memory, where there is room: a sync costs no disk's time then.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("berth-powercut-").tempdir_in(parent).unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        let kind = variable("BERTH_POWERCUT_FS", "ext4");
        let given = std::env::var("BERTH_POWERCUT_DEVICE").ok();
        let looped = given.is_none();
        let device = given.unwrap_or_else(|| {
            let file = std::fs::File::create(dir.path().join("disk")).unwrap();
            file.set_len(DISK).unwrap();
            run(program("losetup").args(["--find", "--show"]).arg(dir.path().join("disk")))
        });
        let force = if kind.starts_with("ext") { "-F" } else { "-f" };
        let options = variable("BERTH_POWERCUT_OPTIONS", "defaults");
        let disk = Self { dir, device, looped, kind, options };
        run(program(&format!("mkfs.{}", disk.kind)).args(["-q", force, &disk.device]));
        disk.mount();
        disk
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) {
        let mut mount = program("mount");
        run(mount.args(["-t", &self.kind, "-o", &self.options, &self.device]).arg(self.path()));
    }

    /// From now on nothing reaches the disk.
    pub(crate) fn cut(&self, how: Shutdown) {
        let dir = std::fs::File::open(self.path()).unwrap();
        shut_down(dir.as_fd(), how).unwrap();
    }

    /// As after a reboot. Nobody may use it any more.
    pub(crate) fn remount(&self) {
        assert!(self.unmount(), "{} stays busy", self.path().display());
        self.mount();
    }

    /// A store that was dropped lets go of its files when its background work ends.
    fn unmount(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let output = program("umount").arg(self.path()).output().unwrap();
            if output.status.success() || Instant::now() > deadline {
                return output.status.success();
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = self.unmount();
        if self.looped {
            let _ = program("losetup").args(["--detach", &self.device]).status();
        }
        assert!(unmounted || std::thread::panicking());
    }
}
