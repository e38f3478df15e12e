//! The part of the machine that a node lives in: a network namespace of its own, and on demand
//! a mount namespace with a chosen propagation. Whatever a node does to interfaces and packet
//! filters stays in there.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// Which mount namespace a node lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountMode {
    /// The machine's own, as the machine has it.
    #[default]
    Host,
    /// One of its own, whose mounts are private.
    Private,
    /// One of its own, whose mounts are shared.
    Shared,
    /// The machine's own, and its network namespace too.
    Machine,
}

/// Holds the namespaces; they end with it.
#[derive(Debug)]
pub struct Host {
    holder: Child,
    mode: MountMode,
}

impl Host {
    /// New namespaces, with `lo` up.
    pub fn new(mode: MountMode) -> Result<Self> {
        let own_mounts = ["--mount", "--propagation", "private"];
        let (options, prepare): (&[&str], &str) = match mode {
            MountMode::Host => (&[], ""),
            MountMode::Private => (&own_mounts, "mount --make-rprivate / &&"),
            MountMode::Shared => (&own_mounts, "mount --make-rshared / &&"),
            MountMode::Machine => return Self::machine(),
        };
        // A fresh network namespace forwards nothing; pods need it to.
        let script = format!(
            "{prepare} ip link set lo up && \
             echo 1 > /proc/sys/net/ipv4/ip_forward && \
             echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet && \
             echo ready && exec sleep infinity"
        );
        let mut unshare = tied("unshare");
        unshare.arg("--net").args(options);
        unshare.args(["sh", "-c", &script]).stdout(Stdio::piped());
        let mut holder = spawn(unshare)?;
        let mut line = String::new();
        let stdout = holder.stdout.take().context("the holder's stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let host = Self { holder, mode };
        ensure!(line == "ready\n", "namespaces for a node: unshare failed");
        Ok(host)
    }

    /// No namespaces of its own.
    fn machine() -> Result<Self> {
        let mut sleep = tied("sleep");
        sleep.arg("infinity");
        Ok(Self { holder: spawn(sleep)?, mode: MountMode::Machine })
    }

    /// The process whose /proc shows the namespaces.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs in the namespaces.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = tied("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n"]);
        if matches!(self.mode, MountMode::Private | MountMode::Shared) {
            command.arg("-m");
        }
        command.args(["--", program]);
        command
    }

    /// Runs a command in the namespaces and answers its stdout.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut command = self.command(program);
        stdout_of(command.args(args).output()?, &format!("{program} {}", args.join(" ")))
    }

    /// A connection to an address of the namespace.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        connect_in(self.pid(), address)
    }

    /// A listener at a free port of the namespace's loopback.
    pub fn listen(&self) -> Result<TcpListener> {
        self.listen_at("127.0.0.1:0")
    }

    /// A listener at an address of the namespace.
    pub fn listen_at(&self, address: &'static str) -> Result<TcpListener> {
        let netns = File::open(format!("/proc/{}/ns/net", self.pid()))?;
        // setns counts for one thread: one of its own.
        let bind = std::thread::spawn(move || -> Result<TcpListener> {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(address)?)
        });
        match bind.join() {
            Ok(listener) => listener,
            Err(_) => bail!("the thread that binds in a namespace panicked"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        end(&mut self.holder);
    }
}

/// A connection to an address of the network namespace of a process.
pub fn connect_in(pid: u32, address: SocketAddr) -> Result<TcpStream> {
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    // setns counts for one thread: one of its own.
    let connect = std::thread::spawn(move || -> Result<TcpStream> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(TcpStream::connect(address)?)
    });
    match connect.join() {
        Ok(stream) => stream,
        Err(_) => bail!("the thread that connects in a namespace panicked"),
    }
}

/// Runs a command on the machine and answers its stdout.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    stdout_of(output, &format!("{program} {}", args.join(" ")))
}

fn stdout_of(output: Output, what: &str) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{what}: {}: {}", output.status, text(&output.stderr));
    Ok(text(&output.stdout))
}

/// Kills a child and takes its end.
pub fn end(child: &mut Child) {
    // Both fail only for a child that was taken already.
    let _ = child.kill();
    let _ = child.wait();
}

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts a process, from a thread that never ends: the parent-death signal of [`tied`] counts
/// from the thread that forked.
pub fn spawn(command: Command) -> Result<Child> {
    static KEEPER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                // Who asked may have gone; then the child is nobody's and ends with us.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let (answer, outcome) = channel();
    let orders = KEEPER.lock().map_err(|_| anyhow::anyhow!("the keeper is poisoned"))?.clone();
    orders.send((command, answer)).context("the keeper thread is gone")?;
    Ok(outcome.recv()??)
}

/// A command that the kernel kills when who started it ends, however that ends.
#[must_use]
pub fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).stdin(Stdio::null());
    command
}
