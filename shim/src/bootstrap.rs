//! The verbs: `start` leaves a resident server behind, `delete` cleans up after a dead one.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use berth_proto::paths::PodPaths;
use berth_sys::resident::{Fork, fork};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::args::Args;
use crate::resident;

/// A verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    #[error("{step}: {source}")]
    Step { step: &'static str, source: io::Error },
    #[error(transparent)]
    Probe(#[from] berth_container::Error),
    #[error(transparent)]
    Delete(#[from] crate::delete::DeleteError),
}

/// Attaches what was being done to a system error.
trait During<T> {
    fn during(self, step: &'static str) -> Result<T, BootstrapError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, step: &'static str) -> Result<T, BootstrapError> {
        self.map_err(|source| BootstrapError::Step { step, source: source.into() })
    }
}

/// Prints the version.
pub(crate) fn version() -> Result<(), BootstrapError> {
    let name = env!("CARGO_BIN_NAME");
    writeln!(io::stdout(), "{name} {}", env!("CARGO_PKG_VERSION")).during("print the version")
}

/// Succeeds where a pod can have a user namespace on layers in the bundle's directory.
pub(crate) fn probe(args: &Args) -> Result<(), BootstrapError> {
    let directory = if args.bundle.is_empty() { "." } else { &args.bundle };
    Ok(berth_container::probe::user_namespaces(Path::new(directory))?)
}

/// Binds the socket in the working directory, forks the resident server and prints its address.
/// If one serves there already, prints its address: the caller lost the first answer.
pub(crate) fn start(args: &Args) -> Result<(), BootstrapError> {
    let directory = std::env::current_dir().during("name the working directory")?;
    let paths = PodPaths::at(&directory);
    let Some(listener) = bind(&paths)? else { return print_address(&paths) };
    let log = open_log(&paths)?;
    match fork().during("fork the resident server")? {
        Fork::Parent(pid) => {
            let told = write_pid(&paths, pid)
                .during("write shim.pid")
                .and_then(|()| print_address(&paths));
            if told.is_err() {
                // Nobody would ever speak to it.
                abandon(&paths, pid);
            }
            told
        }
        Fork::Child => {
            leave_launcher(log)?;
            resident::run(listener, paths, args).during("serve")
        }
    }
}

/// Cleans up after a shim that died and prints a `DeleteResponse`.
pub(crate) fn delete(args: &Args) -> Result<(), BootstrapError> {
    let bundle = match args.bundle.as_str() {
        "" => std::env::current_dir().during("name the working directory")?,
        bundle => PathBuf::from(bundle),
    };
    let answer = crate::delete::run(&bundle)?;
    io::stdout().write_all(&answer).during("print the answer")
}

/// The listening socket, mode 0600. `None`: another shim serves it.
///
/// The name is relative, since a socket's path holds 108 bytes at most and a state directory may
/// lie deeper than that.
fn bind(paths: &PodPaths) -> Result<Option<OwnedFd>, BootstrapError> {
    let path = paths.shim_socket();
    let name = path.file_name().map(Path::new).unwrap_or(&path);
    let address = SocketAddrUnix::new(name).during("name the socket")?;
    if fs::symlink_metadata(name).is_ok() {
        let probe = socket().during("make a socket")?;
        // Too many callers at once (EAGAIN) is an answer too.
        if matches!(rustix::net::connect(&probe, &address), Ok(()) | Err(Errno::AGAIN)) {
            return Ok(None);
        }
        fs::remove_file(name).during("remove a dead shim's socket")?;
    }
    let listener = socket().during("make a socket")?;
    let old_mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&listener, &address);
    rustix::process::umask(old_mask);
    bound.during("bind shim.sock")?;
    rustix::net::listen(&listener, 64).during("listen on shim.sock")?;
    Ok(Some(listener))
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Ends a server that the launcher was not told of.
fn abandon(paths: &PodPaths, pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ended = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let _absent = fs::remove_file(paths.shim_socket());
}

fn write_pid(paths: &PodPaths, pid: u32) -> io::Result<()> {
    let path = paths.shim_pid();
    let temporary = path.with_extension("pid.tmp");
    fs::write(&temporary, pid.to_string())?;
    fs::rename(temporary, path)
}

fn print_address(paths: &PodPaths) -> Result<(), BootstrapError> {
    let mut out = io::stdout();
    write!(out, "unix://{}", paths.shim_socket().display())
        .and_then(|()| out.flush())
        .during("print the address")
}

/// Where the server's messages go. A pipe would block once its reader sleeps; a file that the
/// launcher gave stays.
fn open_log(paths: &PodPaths) -> Result<Option<OwnedFd>, BootstrapError> {
    let kind = rustix::fs::fstat(rustix::stdio::stderr())
        .map(|stat| FileType::from_raw_mode(stat.st_mode));
    if matches!(kind, Ok(FileType::RegularFile)) {
        return Ok(None);
    }
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    let log = rustix::fs::open(paths.shim_log(), flags, Mode::from_raw_mode(0o600));
    log.map(Some).during("open shim.log")
}

/// The child leaves the launcher's session and its pipes. It stays in the pod's directory: by that
/// a daemon finds the shim of a pod, even one that had no time to write its pid.
fn leave_launcher(log: Option<OwnedFd>) -> Result<(), BootstrapError> {
    if let Some(log) = log {
        rustix::stdio::dup2_stderr(log).during("direct messages to shim.log")?;
    }
    rustix::process::setsid().during("leave the launcher's session")?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .during("open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).during("close stdin")?;
    rustix::stdio::dup2_stdout(&null).during("close stdout")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}
