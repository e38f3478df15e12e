//! Path walks that can't leave a root directory, whatever symbolic links lie inside: openat2(2)
//! with `RESOLVE_IN_ROOT`, and a component-wise walk where something is to be made.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symbolic links one walk follows, as the kernel's own limit.
const MAX_LINKS: usize = 40;

/// What lies at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    /// A directory.
    Dir,
    /// Anything else, made as an empty regular file.
    File,
}

/// A directory that walks don't leave: absolute links and `..` stay inside.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
}

impl Root {
    /// Takes a directory descriptor (`O_PATH` is enough) as root.
    #[must_use]
    pub fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// Opens a directory of the caller's own view as root.
    pub fn open_dir(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// The directory itself.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens `path` (absolute or relative, both from the root) with these flags, close-on-exec.
    /// No link of the kind /proc/PID/fd holds is followed (`ELOOP`).
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = || {
            rustix::fs::openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
        };
        // EAGAIN: a rename or mount raced with a `..`; the kernel asks to try again.
        for _ in 0..64 {
            match open() {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
        Ok(open()?)
    }

    /// A location: [`Root::open`] with `O_PATH`.
    pub fn locate(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// A location, made where absent: missing directories with mode 0755, a missing leaf as asked.
    /// Links are followed inside the root, also where their target is missing.
    pub fn ensure(&self, path: &Path, leaf: Leaf) -> io::Result<OwnedFd> {
        match self.locate(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Walk::new(self)?.run(path, leaf),
            other => other,
        }
    }
}

/// A walk that makes what is missing. Each step opens one component without following it.
struct Walk {
    /// From the root down to where the walk is; `..` pops, never the root.
    dirs: Vec<OwnedFd>,
    rest: VecDeque<OsString>,
    links: usize,
}

impl Walk {
    fn new(root: &Root) -> io::Result<Self> {
        let top = rustix::io::fcntl_dupfd_cloexec(&root.dir, 0)?;
        Ok(Self { dirs: vec![top], rest: VecDeque::new(), links: 0 })
    }

    fn run(mut self, path: &Path, leaf: Leaf) -> io::Result<OwnedFd> {
        self.push_front(path.as_os_str());
        while let Some(name) = self.rest.pop_front() {
            if name.as_bytes() == b".." {
                if self.dirs.len() > 1 {
                    self.dirs.pop();
                }
                continue;
            }
            let kind = if self.rest.is_empty() { leaf } else { Leaf::Dir };
            let (fd, is_dir) = match self.step(&name, kind)? {
                Some(found) => found,
                None => continue,
            };
            if self.rest.is_empty() && !is_dir {
                return Ok(fd);
            }
            self.dirs.push(fd);
        }
        self.dirs.pop().ok_or_else(|| Errno::NOENT.into())
    }

    /// Opens or makes one component. `None`: it was a link, whose target is now ahead.
    fn step(&mut self, name: &OsStr, leaf: Leaf) -> io::Result<Option<(OwnedFd, bool)>> {
        let here = self.dirs.last().ok_or(Errno::NOENT)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(here, name, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                make(here.as_fd(), name, leaf)?;
                open()?
            }
            other => other?,
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Symlink => {
                self.links += 1;
                if self.links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?.into_bytes();
                self.push_front(&OsString::from_vec(target));
                Ok(None)
            }
            kind => Ok(Some((fd, kind == FileType::Directory))),
        }
    }

    fn push_front(&mut self, path: &OsStr) {
        if path.as_bytes().starts_with(b"/") {
            self.dirs.truncate(1);
        }
        let parts = path.as_bytes().split(|&b| b == b'/');
        for part in parts.rev().filter(|part| !part.is_empty() && *part != b".") {
            self.rest.push_front(OsStr::from_bytes(part).to_owned());
        }
    }
}

/// Somebody else making the same name meanwhile is fine: the caller opens what is there.
fn make(dir: BorrowedFd<'_>, name: &OsStr, leaf: Leaf) -> io::Result<()> {
    let made = match leaf {
        Leaf::Dir => rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Leaf::File => rustix::fs::openat(
            dir,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY,
            Mode::from_raw_mode(0o644),
        )
        .map(drop),
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Whether `fd` is a directory or something else.
pub fn leaf_of(fd: BorrowedFd<'_>) -> io::Result<Leaf> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    let dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(if dir { Leaf::Dir } else { Leaf::File })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("berth-root-{name}-{}", std::process::id()));
            fs::create_dir_all(dir.join("root")).unwrap();
            Self(dir)
        }
        fn root(&self) -> Root {
            Root::open_dir(&self.0.join("root")).unwrap()
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn made_paths_stay_inside_whatever_the_links_say() {
        let s = Scratch::new("links");
        let root = s.0.join("root");
        let cases: &[(&str, &str, &str, &str)] = &[
            // link, its target, walked path, where it must land below the root
            ("abs", "/etc/new", "/abs/x", "etc/new/x"),
            ("up", "../../../outside", "/up/y", "outside/y"),
            ("rel", "sub/dir", "/rel/z", "sub/dir/z"),
            ("chain", "rel", "/chain/w", "sub/dir/w"),
            ("dots", "./a/../b", "/dots/../c", "c"),
            ("leaflink", "/var/late", "/leaflink", "var/late"),
        ];
        for (link, target, _, _) in cases {
            symlink(target, root.join(link)).unwrap();
        }
        for (_, _, walk, lands) in cases {
            s.root().ensure(Path::new(walk), Leaf::File).unwrap_or_else(|e| panic!("{walk}: {e}"));
            assert!(root.join(lands).is_file(), "{walk} should land at {lands}");
        }
        assert!(!s.0.join("outside").exists());
    }

    #[test]
    fn what_exists_is_found_and_not_remade() {
        let s = Scratch::new("found");
        fs::write(s.0.join("root/file"), "kept").unwrap();
        let fd = s.root().ensure(Path::new("/file"), Leaf::Dir).unwrap();
        assert_eq!(leaf_of(fd.as_fd()).unwrap(), Leaf::File);
        assert_eq!(fs::read(s.0.join("root/file")).unwrap(), b"kept");
        let dir = s.root().ensure(Path::new("/"), Leaf::Dir).unwrap();
        assert_eq!(leaf_of(dir.as_fd()).unwrap(), Leaf::Dir);
    }

    #[test]
    fn loops_and_files_in_the_way_are_errors() {
        let s = Scratch::new("loops");
        symlink("loop", s.0.join("root/loop")).unwrap();
        fs::write(s.0.join("root/file"), "").unwrap();
        let err = s.root().ensure(Path::new("/loop/x"), Leaf::Dir).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ELOOP));
        let err = s.root().ensure(Path::new("/file/x"), Leaf::Dir).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ENOTDIR));
    }

    #[test]
    fn magic_links_are_not_followed() {
        let root = Root::open_dir(Path::new("/")).unwrap();
        let err = root.locate(Path::new("/proc/self/cwd")).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(libc::ELOOP));
    }
}
