//! One connection. A task reads it and opens streams for whoever serves them; another writes what
//! these send and what the reader has to answer.
//!
//! ```text
//! socket -> reader -> one queue per stream -> Input            Sender -> queue -> writer -> socket
//!             +-- answers (SYN_REPLY, PING, RST_STREAM, WINDOW_UPDATE), before all data ----+
//! ```
//! Every queue has a bound. A stream whose queue is full holds up the reader, as the client's TCP
//! window then holds up the client; nobody but a stream's own user empties it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Error;
use super::frame::{self, Frame, Parser, Reset};
use super::headers::{Deflater, Headers};
use super::window::{INITIAL, Window};
use crate::stream::channel::{
    Activity, Delivered, Gone, Input, Output, Presence, Probe, QUEUE, READ, deliver,
};

/// Streams that one client may have open. A pair is one forwarded connection.
const MAX_STREAMS: usize = 2048;
/// Streams that wait for being served.
const ACCEPTED: usize = 16;
/// Frames of data that wait for the socket.
const FRAMES: usize = 4;
/// Answers that wait for the socket: more, and the client reads nothing.
const ANSWERS: usize = 1024;
/// What was taken before the peer is told that it may send as much again.
const CREDIT: usize = 32 << 10;
/// The longest frame that is sent. Half of what the format allows.
const MAX_FRAME: usize = 8 << 20;
/// How long the client has to take the last bytes and to close.
const LINGER: Duration = Duration::from_secs(10);

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A stream that the client has opened.
#[derive(Debug)]
pub(in crate::stream) struct Stream {
    pub(in crate::stream) id: u32,
    pub(in crate::stream) headers: Headers,
    pub(in crate::stream) input: Input,
    pub(in crate::stream) output: Output,
}

#[derive(Debug)]
enum Out {
    Frame([u8; 8], Bytes),
    Last(Bytes),
}

#[derive(Debug)]
struct Entry {
    /// None: the client has sent all.
    input: Option<mpsc::Sender<Bytes>>,
    /// We have sent all.
    finished: bool,
    window: Arc<Window>,
}

#[derive(Debug)]
struct Shared {
    streams: Mutex<BTreeMap<u32, Entry>>,
    frames: mpsc::Sender<Out>,
    answers: mpsc::Sender<Bytes>,
    /// Of all streams together.
    window: Window,
    /// The peer knows flow control.
    flow: AtomicBool,
    gone: watch::Sender<bool>,
    activity: Arc<Activity>,
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, BTreeMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, frame: Bytes) -> Result<(), Error> {
        self.answers.try_send(frame).map_err(|_| Error::Flood)
    }

    /// One direction of a stream has ended. What ended in both is forgotten.
    fn ended(&self, stream: u32, end: impl FnOnce(&mut Entry)) {
        let mut streams = self.streams();
        let Some(entry) = streams.get_mut(&stream) else { return };
        end(entry);
        if entry.finished && entry.input.is_none() {
            streams.remove(&stream);
        }
    }

    /// `false`: it was not there.
    fn remove(&self, stream: u32) -> bool {
        let entry = self.streams().remove(&stream);
        entry.is_some_and(|entry| {
            entry.window.close();
            true
        })
    }

    /// The connection is of no more use.
    fn end(&self) {
        self.gone.send_replace(true);
        self.window.close();
        for (_, entry) in std::mem::take(&mut *self.streams()) {
            entry.window.close();
        }
    }
}

/// Sends one stream's bytes. Dropped before its end, it resets the stream.
#[derive(Debug)]
pub(in crate::stream) struct Sender {
    shared: Arc<Shared>,
    stream: u32,
    window: Arc<Window>,
    finished: bool,
}

impl Sender {
    /// Sends; waits while the client is slow. Part may be sent when the future is dropped.
    pub(in crate::stream) async fn send(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let fits = bytes.len().min(MAX_FRAME);
            let of_stream = self.window.take(fits).await.ok_or(Gone)?;
            let count = self.shared.window.take(of_stream).await.ok_or(Gone)?;
            if count < of_stream {
                self.window.grow(i64::try_from(of_stream - count).unwrap_or_default());
            }
            let piece = bytes.split_to(count);
            let head = frame::data_head(self.stream, piece.len(), false);
            self.shared.frames.send(Out::Frame(head, piece)).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Waits until nothing can be sent any more: the client has reset the stream, or is gone.
    pub(in crate::stream) fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        let window = Arc::clone(&self.window);
        async move { window.closed().await }
    }

    /// The end of what we send.
    pub(in crate::stream) async fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let head = frame::data_head(self.stream, 0, true);
            // Where nobody is left, nobody asks.
            let _gone = self.shared.frames.send(Out::Frame(head, Bytes::new())).await;
            self.shared.ended(self.stream, |entry| entry.finished = true);
        }
    }

    /// Ends the stream at once, in both directions.
    pub(in crate::stream) fn reset(&mut self, why: Reset) {
        if !std::mem::replace(&mut self.finished, true) && self.shared.remove(self.stream) {
            let _gone = self.shared.answer(frame::rst_stream(self.stream, why));
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.reset(Reset::Cancel);
    }
}

/// Tells the client how much of a stream was taken.
#[derive(Debug)]
pub(in crate::stream) struct Credit {
    shared: Arc<Shared>,
    stream: u32,
    taken: usize,
}

impl Credit {
    /// So many bytes were taken.
    pub(in crate::stream) fn used(&mut self, count: usize) {
        self.taken += count;
        if self.taken >= CREDIT && self.shared.flow.load(Ordering::Relaxed) {
            let delta = u32::try_from(std::mem::take(&mut self.taken)).unwrap_or_default();
            for stream in [self.stream, 0] {
                let _gone = self.shared.answer(frame::window_update(stream, delta));
            }
        }
    }
}

/// A connection that is served. Dropped, it is cut off.
#[derive(Debug)]
pub(in crate::stream) struct Session {
    shared: Arc<Shared>,
    accepted: mpsc::Receiver<Stream>,
    presence: Presence,
    reader: JoinSet<()>,
    writer: JoinSet<()>,
}

impl Session {
    /// Serves a connection. `early`: what came with the request that became it.
    pub(in crate::stream) fn start(
        reader: Reader,
        writer: Writer,
        early: Bytes,
        probe: Probe,
        activity: Arc<Activity>,
    ) -> Result<Self, Error> {
        let (frames, to_send) = mpsc::channel(FRAMES);
        let (answers, to_answer) = mpsc::channel(ANSWERS);
        let (accept, accepted) = mpsc::channel(ACCEPTED);
        let (gone, presence) = Presence::new();
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            frames,
            answers,
            window: Window::new(INITIAL, false),
            flow: AtomicBool::new(false),
            gone,
            activity,
        });
        let mut demux = Demux {
            shared: Arc::clone(&shared),
            accept,
            probe,
            deflater: Deflater::new()?,
            last: 0,
            initial: INITIAL,
        };
        let (mut reading, mut writing) = (JoinSet::new(), JoinSet::new());
        reading.spawn(async move {
            if let Err(error) = demux.run(reader, early).await {
                tracing::info!(%error, "a client's SPDY connection is cut off");
            }
            demux.shared.end();
        });
        let activity = Arc::clone(&shared.activity);
        let tell = shared.gone.clone();
        writing.spawn(async move {
            if write(writer, to_send, to_answer, &activity).await.is_err() {
                tell.send_replace(true);
            }
        });
        Ok(Self { shared, accepted, presence, reader: reading, writer: writing })
    }

    /// The next stream that the client opens. `None`: it opens no more.
    pub(in crate::stream) async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// From now on the streams that the client opens are reset.
    pub(in crate::stream) fn refuse_more(&mut self) {
        self.accepted.close();
    }

    /// Tells when the client is gone.
    pub(in crate::stream) fn presence(&self) -> Presence {
        self.presence.clone()
    }

    /// Ends the connection: what was sent is delivered, then the client has a while to close.
    pub(in crate::stream) async fn close(mut self) {
        let last = frame::goaway(0);
        let ended = async {
            if self.shared.frames.send(Out::Last(last)).await.is_ok() {
                while self.writer.join_next().await.is_some() {}
                while self.reader.join_next().await.is_some() {}
            }
        };
        let _cut_off = tokio::time::timeout(LINGER, ended).await;
    }
}

/// Writes until the last frame, or until the client is gone.
async fn write(
    mut socket: Writer,
    mut frames: mpsc::Receiver<Out>,
    mut answers: mpsc::Receiver<Bytes>,
    activity: &Activity,
) -> std::io::Result<()> {
    loop {
        let next = tokio::select! {
            biased;
            Some(mut answer) = answers.recv() => {
                socket.write_all_buf(&mut answer).await?;
                None
            }
            Some(out) = frames.recv() => Some(out),
            else => return Ok(()),
        };
        match next {
            Some(Out::Frame(head, bytes)) => {
                socket.write_all_buf(&mut Buf::chain(&head[..], bytes)).await?;
            }
            Some(Out::Last(mut bytes)) => {
                socket.write_all_buf(&mut bytes).await?;
                return socket.shutdown().await;
            }
            None => {}
        }
        socket.flush().await?;
        activity.touch();
    }
}

/// What reads a connection and takes it apart.
struct Demux {
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
    probe: Probe,
    deflater: Deflater,
    last: u32,
    /// The window that new streams begin with.
    initial: i64,
}

impl Demux {
    async fn run(&mut self, mut socket: Reader, early: Bytes) -> Result<(), Error> {
        let mut parser = Parser::default();
        let mut input = BytesMut::from(early);
        loop {
            while let Some(frame) = parser.next(&mut input)? {
                if self.take(frame).await? == Next::Gone {
                    return Ok(());
                }
            }
            input.reserve(READ);
            match socket.read_buf(&mut input).await {
                Ok(count) if count > 0 => self.shared.activity.touch(),
                // The client hung up, politely or not.
                _ => return Ok(()),
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<Next, Error> {
        match frame {
            Frame::SynStream { stream, fin, headers } => {
                return self.open(stream, fin, headers).await;
            }
            Frame::Data { stream, bytes, fin } => return self.data(stream, bytes, fin).await,
            Frame::Headers { stream, fin: true } => {
                self.shared.ended(stream, |entry| entry.input = None);
            }
            Frame::RstStream { stream, .. } => {
                self.shared.remove(stream);
            }
            Frame::WindowUpdate { stream, delta } => self.grow(stream, delta)?,
            Frame::Settings { initial_window } => self.settings(initial_window),
            // Ours would be even.
            Frame::Ping(id) if id % 2 == 1 => self.shared.answer(frame::ping(id))?,
            Frame::Ping(_) | Frame::GoAway | Frame::Headers { .. } | Frame::SynReply { .. } => {}
        }
        Ok(Next::Go)
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> Result<Next, Error> {
        if stream.is_multiple_of(2) || stream <= self.last {
            return Err(Error::StreamNumber(stream));
        }
        self.last = stream;
        if self.shared.streams().len() >= MAX_STREAMS {
            self.shared.answer(frame::rst_stream(stream, Reset::Refused))?;
            return Ok(Next::Go);
        }
        self.shared.answer(frame::syn_reply(stream, &mut self.deflater)?)?;
        let (pieces, queue) = mpsc::channel(QUEUE);
        let enforced = self.shared.flow.load(Ordering::Relaxed);
        let window = Arc::new(Window::new(self.initial, enforced));
        let input = (!fin).then_some(pieces);
        let entry = Entry { input, finished: false, window: Arc::clone(&window) };
        self.shared.streams().insert(stream, entry);
        let shared = || Arc::clone(&self.shared);
        let credit = Credit { shared: shared(), stream, taken: 0 };
        let sender = Sender { shared: shared(), stream, window, finished: false };
        let opened = Stream {
            id: stream,
            headers,
            input: Input::new(queue, Some(credit)),
            output: Output::Spdy(sender),
        };
        // Nobody serves streams any more: the session is being closed, and the stream is reset.
        let _closing = self.accept.send(opened).await;
        Ok(Next::Go)
    }

    async fn data(&self, stream: u32, bytes: Bytes, fin: bool) -> Result<Next, Error> {
        let count = bytes.len();
        let input = self.shared.streams().get(&stream).and_then(|entry| entry.input.clone());
        let delivered = match input {
            Some(input) if count > 0 => deliver(&input, bytes, &self.probe).await,
            Some(_) => Ok(Delivered::Taken),
            None => Ok(Delivered::Unwanted),
        };
        match delivered {
            Err(Gone) => return Ok(Next::Gone),
            // What nobody reads must not take room from what is read.
            Ok(Delivered::Unwanted) if count > 0 && self.shared.flow.load(Ordering::Relaxed) => {
                let delta = u32::try_from(count).unwrap_or_default();
                self.shared.answer(frame::window_update(0, delta))?;
            }
            Ok(_) => {}
        }
        if fin {
            self.shared.ended(stream, |entry| entry.input = None);
        }
        Ok(Next::Go)
    }

    fn grow(&self, stream: u32, delta: u32) -> Result<(), Error> {
        self.enforce();
        let delta = i64::from(delta);
        if stream == 0 {
            return if self.shared.window.grow(delta) { Ok(()) } else { Err(Error::Flood) };
        }
        let window = self.shared.streams().get(&stream).map(|entry| Arc::clone(&entry.window));
        if window.is_some_and(|window| !window.grow(delta)) {
            self.shared.remove(stream);
            self.shared.answer(frame::rst_stream(stream, Reset::FlowControl))?;
        }
        Ok(())
    }

    fn settings(&mut self, initial: Option<u32>) {
        self.enforce();
        let Some(initial) = initial.map(i64::from) else { return };
        let delta = initial - std::mem::replace(&mut self.initial, initial);
        for entry in self.shared.streams().values() {
            entry.window.grow(delta);
        }
    }

    fn enforce(&self) {
        if !self.shared.flow.swap(true, Ordering::Relaxed) {
            self.shared.window.enforce();
            for entry in self.shared.streams().values() {
                entry.window.enforce();
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Go,
    Gone,
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
