//! Exec and attach: a process's streams, and the client's.

use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::channel::{Input, Output, Presence, READ};
use super::negotiate::{self, Upgrade};
use super::pipe::Pipe;
use super::server::Accepted;
use super::spdy::Session;
use super::status::Outcome;
use super::websocket::Channels;
use super::{Command, Wanted, forward};
use crate::pod::Roster;
use crate::shim::{Ending, Ends, Leash};

/// How long the client may take to open its streams.
const STREAMS: Duration = Duration::from_secs(30);
/// How long outputs are read that a process's children keep open after its end.
const DRAIN: Duration = Duration::from_millis(500);
/// What is taken after that without waiting: more than a pipe holds.
const REST: usize = 4 << 20;
/// What is read from a process at a time.
const PIECE: usize = 4 * READ;

/// The client's side.
struct Wires {
    stdin: Option<Input>,
    resize: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    error: Output,
    /// The other directions of what the client sends: their ends would end those, too.
    kept: Vec<Output>,
}

impl Wires {
    async fn finish(self) {
        let all = [self.stdout, self.stderr, Some(self.error)].into_iter().flatten();
        for mut output in all.chain(self.kept) {
            output.finish().await;
        }
    }
}

/// Serves one client.
pub(super) async fn serve(
    roster: Arc<Roster>,
    command: Command,
    accepted: Accepted,
    upgrade: Upgrade,
) {
    match upgrade {
        Upgrade::Spdy(protocol) => {
            let Ok(mut session) = forward::start(accepted) else { return };
            let collected = collect(&mut session, command.wanted, protocol);
            match tokio::time::timeout(STREAMS, collected).await {
                Ok(Some(wires)) => {
                    session.refuse_more();
                    run(roster, command, wires, session.presence(), protocol).await;
                }
                Ok(None) => {}
                Err(_) => tracing::info!("a client did not open its streams in time"),
            }
            session.close().await;
        }
        Upgrade::WebSocket(protocol, _) => {
            let Wanted { stdin, stdout, stderr, tty } = command.wanted;
            let readable = [stdin, false, false, false, tty];
            let codec = negotiate::codec(protocol);
            let (channels, inputs) = Channels::start(accepted, codec, &readable).await;
            let mut inputs = inputs.into_iter();
            let mut wires = Wires {
                stdin: if stdin { inputs.next() } else { None },
                resize: if tty { inputs.next() } else { None },
                stdout: stdout.then(|| channels.output(1)),
                stderr: stderr.then(|| channels.output(2)),
                error: channels.output(3),
                kept: Vec::new(),
            };
            // An empty message on the lowest channel says that all is set up.
            let first = wires.stdout.as_mut().or(wires.stderr.as_mut());
            if first.unwrap_or(&mut wires.error).send_bytes(&[]).await.is_ok() {
                run(roster, command, wires, channels.presence(), protocol).await;
            }
            channels.close().await;
        }
    }
}

/// Takes the streams that the client opens until it has opened all. `None`: it is gone.
async fn collect(session: &mut Session, wanted: Wanted, protocol: Option<&str>) -> Option<Wires> {
    let resizes = wanted.tty && negotiate::resizes(protocol);
    let (mut stdin, mut resize, mut kept) = (None, None, Vec::new());
    let (mut stdout, mut stderr, mut error) = (None, None, None);
    loop {
        let missing = (wanted.stdin && stdin.is_none())
            || (wanted.stdout && stdout.is_none())
            || (wanted.stderr && stderr.is_none())
            || (resizes && resize.is_none());
        if !missing && let Some(error) = error.take() {
            return Some(Wires { stdin, resize, stdout, stderr, error, kept });
        }
        let stream = session.accept().await?;
        let keep = match stream.headers.get("streamType") {
            Some("stdin") if wanted.stdin => {
                stdin = Some(stream.input);
                Some(stream.output)
            }
            Some("resize") if wanted.tty => {
                resize = Some(stream.input);
                Some(stream.output)
            }
            Some("stdout") if wanted.stdout => stdout.replace(stream.output),
            Some("stderr") if wanted.stderr => stderr.replace(stream.output),
            Some("error") => error.replace(stream.output),
            // Nobody asked for it: it is reset.
            _ => None,
        };
        kept.extend(keep);
    }
}

/// From the process's beginning to what the client is told of its end. A client that goes ends
/// what it began.
async fn run(
    roster: Arc<Roster>,
    command: Command,
    mut wires: Wires,
    mut presence: Presence,
    protocol: Option<&str>,
) {
    let outcome = tokio::select! {
        outcome = process(&roster, &command, &mut wires) => outcome,
        () = presence.ended() => return,
    };
    let told = outcome.render(negotiate::tells_status(protocol));
    if !told.is_empty() && wires.error.send_bytes(told.as_bytes()).await.is_err() {
        return;
    }
    wires.finish().await;
}

async fn process(roster: &Roster, command: &Command, wires: &mut Wires) -> Outcome {
    let opened = match &command.argv {
        Some(argv) => roster.exec(&command.container, argv.clone(), command.wanted).await,
        None => roster.attach(&command.container, command.wanted).await,
    };
    let failed = |what: &str, why: &dyn std::fmt::Display| {
        let verb = if command.argv.is_some() { "executing command in" } else { "attaching to" };
        tracing::info!(container = %command.container, error = %why, "{what}");
        Outcome::Failure(format!("error {verb} container: {why}"))
    };
    let (leash, ends) = match opened {
        Ok(opened) => opened,
        Err(error) => return failed("a process's streams cannot be had", &error),
    };
    match Pipes::new(ends, command.argv.is_some()) {
        Ok(pipes) => pump_all(leash, pipes, wires).await,
        Err(error) => failed("a process's streams cannot be read", &error),
    }
}

/// The process's side.
struct Pipes {
    stdin: Option<Arc<Pipe>>,
    stdout: Option<Arc<Pipe>>,
    stderr: Option<Arc<Pipe>>,
    terminal: Option<Arc<Pipe>>,
}

impl Pipes {
    /// `owned`: nobody else reads the terminal. Its first process's output is the shim's to read.
    fn new(ends: Ends, owned: bool) -> std::io::Result<Self> {
        let pipe = |end: Option<OwnedFd>| end.map(|fd| Pipe::new(fd).map(Arc::new)).transpose();
        let terminal = pipe(ends.terminal)?;
        Ok(Self {
            stdin: pipe(ends.stdin)?.or_else(|| terminal.clone().filter(|_| owned)),
            stdout: pipe(ends.stdout)?.or_else(|| terminal.clone().filter(|_| owned)),
            stderr: pipe(ends.stderr)?,
            terminal,
        })
    }
}

async fn pump_all(mut leash: Leash, pipes: Pipes, wires: &mut Wires) -> Outcome {
    let (tell, ended) = watch::channel(None);
    let Pipes { stdin, stdout, stderr, terminal } = pipes;
    let outputs = async {
        tokio::join!(
            pump_out(stdout, wires.stdout.as_mut(), ended.clone()),
            pump_out(stderr, wires.stderr.as_mut(), ended.clone()),
        )
    };
    let end = async {
        let ending = leash.wait().await;
        tell.send_replace(Some(Instant::now()));
        ending
    };
    let inputs = async {
        tokio::join!(pump_in(wires.stdin.take(), stdin), resize(wires.resize.take(), terminal));
        pending::<()>().await;
    };
    let ending = tokio::select! {
        (_, ending) = async { tokio::join!(outputs, end) } => ending,
        () = inputs => return Outcome::Success,
    };
    match ending {
        Ok(Ending { dropped: true, .. }) => {
            Outcome::Failure("the output was read too slowly, and part of it is lost".to_owned())
        }
        Ok(Ending { exit_code: Some(code), .. }) if code != 0 => Outcome::Exit(code),
        Ok(_) => Outcome::Success,
        Err(error) => Outcome::Failure(error.to_string()),
    }
}

/// Reads an output to its end. Its process's children may keep it open: then until [`DRAIN`] after
/// the process's end, and what is there at that time.
async fn pump_out(
    source: Option<Arc<Pipe>>,
    output: Option<&mut Output>,
    mut ended: watch::Receiver<Option<Instant>>,
) {
    let Some(source) = source else { return };
    let mut output = output;
    let mut rest = REST;
    loop {
        let mut piece = Vec::with_capacity(Output::HEADROOM + PIECE);
        piece.resize(Output::HEADROOM, 0);
        let limit = ended.borrow_and_update().map(|at| at + DRAIN);
        let read = if limit.is_some_and(|limit| limit <= Instant::now()) {
            source.try_read(&mut piece).ok().filter(|count| {
                rest = rest.saturating_sub(*count);
                *count > 0 && rest > 0
            })
        } else {
            tokio::select! {
                read = source.read(&mut piece) => read.ok().filter(|count| *count > 0),
                () = sleep_until(limit) => continue,
                Ok(()) = ended.changed() => continue,
            }
        };
        if read.is_none() {
            return;
        }
        if let Some(output) = output.as_mut()
            && output.send(shrunk(piece)).await.is_err()
        {
            return;
        }
    }
}

/// A few bytes must not hold the room that many would need while they wait.
fn shrunk(piece: Vec<u8>) -> Vec<u8> {
    if piece.len() < PIECE / 16 { piece.as_slice().to_vec() } else { piece }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => pending().await,
    }
}

/// Writes what the client sends until its end, which is then the process's end of input.
async fn pump_in(input: Option<Input>, sink: Option<Arc<Pipe>>) {
    let Some(mut input) = input else { return };
    let mut sink = sink;
    // What nobody reads any more is dropped, so that it holds up no other channel.
    while let Some(piece) = input.next().await {
        if let Some(pipe) = &sink
            && pipe.write_all(&piece).await.is_err()
        {
            sink = None;
        }
    }
}

/// A terminal's size, as clients write it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    columns: u16,
    #[serde(rename = "Height")]
    rows: u16,
}

/// Sets the terminal to each size that the client sends.
async fn resize(input: Option<Input>, terminal: Option<Arc<Pipe>>) {
    let Some(mut input) = input else { return };
    let mut text = Vec::new();
    while let Some(piece) = input.next().await {
        text.extend_from_slice(&piece);
        for size in sizes(&mut text) {
            if let Some(terminal) = &terminal
                && let Err(error) =
                    berth_sys::pty::set_size(terminal.as_fd(), size.columns, size.rows)
            {
                tracing::debug!(%error, "a terminal was not resized");
            }
        }
    }
}

/// Takes whole sizes off the front of what came; forgets what can be none.
fn sizes(text: &mut Vec<u8>) -> Vec<Size> {
    const LONGEST: usize = 4096;
    let mut read = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut all = Vec::new();
    let mut taken = 0;
    let broken = loop {
        match read.next() {
            Some(Ok(size)) => {
                all.push(size);
                taken = read.byte_offset();
            }
            Some(Err(error)) => break !error.is_eof(),
            None => {
                taken = text.len();
                break false;
            }
        }
    };
    text.drain(..taken);
    if broken || text.len() > LONGEST {
        text.clear();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let size = |columns, rows| Size { columns, rows };
        let mut text = Vec::new();
        for (piece, want) in [
            ("{\"Width\":80,", vec![]),
            ("\"Height\":24}\n{\"Width\":1,\"Height\":2}{\"W", vec![size(80, 24), size(1, 2)]),
            ("idth\":3,\"Height\":4}\n", vec![size(3, 4)]),
            ("rubbish", vec![]),
            ("{\"Width\":70000,\"Height\":4}", vec![]),
            ("{\"Width\":5,\"Height\":6}", vec![size(5, 6)]),
        ] {
            text.extend_from_slice(piece.as_bytes());
            assert_eq!(sizes(&mut text), want, "{piece}");
        }
        assert!(text.is_empty());
    }
}
