//! Pumps: what reads the output of a process, and where it goes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::lines::{Splitter, Stream};
use super::log_file::LogFile;
use super::stamp::Stamp;
use super::tap::Tap;

/// What one read takes at most: small enough that it is still in the processor's cache when it is
/// formatted and written, and that one container's output does not hold up the others'.
const READ_LEN: usize = 256 << 10;

/// Buffers that all pumps use in turn, and that an idle shim does without.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Scratch {
    /// Gives the memory back.
    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }
}

/// Where a pump's bytes go, whoever else reads along.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Lines of the container's log.
    Log(Splitter),
    /// The answer of an ExecSync.
    Capture(Capture),
    /// Nowhere: a terminal must be read even if nobody wants its output.
    Discard,
}

/// Output that is kept up to a limit; the surplus is dropped.
#[derive(Debug)]
pub(crate) struct Capture {
    bytes: Vec<u8>,
    limit: usize,
}

impl Capture {
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit }
    }

    fn push(&mut self, input: &[u8]) {
        let room = self.limit.saturating_sub(self.bytes.len()).min(input.len());
        self.bytes.extend_from_slice(input.get(..room).unwrap_or_default());
    }
}

/// What one turn of a pump showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// So many bytes came; more may be there.
    Some(usize),
    /// Nothing is there now.
    Empty,
    /// Nothing will come any more.
    Ended,
}

/// One output stream of one process.
#[derive(Debug)]
pub(crate) struct Pump {
    source: OwnedFd,
    sink: Sink,
    /// What it is to its process; a terminal counts as standard output.
    pub(crate) stream: Stream,
    /// Who reads along.
    pub(crate) taps: Vec<Tap>,
    /// The number of the process that this is an output of.
    pub(crate) owner: u64,
    /// It is read by the clock, not when it is ready.
    pub(crate) paced: bool,
    /// When it was last read.
    pub(crate) last_turn: Option<Instant>,
}

impl Pump {
    /// Reads from `source`, which must be non-blocking.
    pub(crate) fn new(source: OwnedFd, owner: u64, sink: Sink) -> Self {
        let (stream, taps) = (Stream::Stdout, Vec::new());
        Self { source, sink, stream, taps, owner, paced: false, last_turn: None }
    }

    /// Of this stream.
    pub(crate) fn of(self, stream: Stream) -> Self {
        Self { stream, ..self }
    }

    /// The sink for one stream of a log.
    pub(crate) fn log(stream: Stream) -> Sink {
        Sink::Log(Splitter::new(stream))
    }

    /// Its bytes go to a log alone, where a moment's delay is nothing.
    pub(crate) fn may_wait(&self) -> bool {
        matches!(self.sink, Sink::Log(_)) && self.taps.is_empty()
    }

    /// Reads once and passes on what came. `log` is the owner's log, if it has one.
    pub(crate) fn turn(&mut self, scratch: &mut Scratch, log: Option<&mut LogFile>) -> Flow {
        let Scratch { input, output } = scratch;
        input.clear();
        input.reserve_exact(READ_LEN);
        match rustix::io::read(&self.source, spare_capacity(input)) {
            Ok(0) => return Flow::Ended,
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Flow::Empty,
            // A terminal whose last user has gone says EIO.
            Err(_) => return Flow::Ended,
        }
        for tap in &mut self.taps {
            tap.push(input);
        }
        match &mut self.sink {
            Sink::Discard => {}
            Sink::Capture(capture) => capture.push(input),
            Sink::Log(splitter) => {
                output.clear();
                splitter.push(input, &Stamp::now(), output);
                if let Some(log) = log.filter(|_| !output.is_empty()) {
                    log.write(output);
                }
            }
        }
        Flow::Some(input.len())
    }

    /// Passes on what waits for an end of line that will not come, and gives what was captured.
    pub(crate) fn finish(self, log: Option<&mut LogFile>) -> Vec<u8> {
        match self.sink {
            Sink::Discard => Vec::new(),
            Sink::Capture(capture) => capture.bytes,
            Sink::Log(mut splitter) => {
                let mut output = Vec::new();
                splitter.finish(&Stamp::now(), &mut output);
                if let Some(log) = log.filter(|_| !output.is_empty()) {
                    log.write(&output);
                }
                Vec::new()
            }
        }
    }
}

impl AsFd for Pump {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;
    use crate::container::output_pipe;

    #[test]
    fn a_capture_keeps_its_limit_and_reads_on() {
        let (read, write) = output_pipe().unwrap();
        let mut pump = Pump::new(read, 1, Sink::Capture(Capture::new(5)));
        let mut scratch = Scratch::default();
        assert_eq!(pump.turn(&mut scratch, None), Flow::Empty);
        for chunk in [&b"abc"[..], b"defg", b"h"] {
            rustix::io::write(&write, chunk).unwrap();
            assert_eq!(pump.turn(&mut scratch, None), Flow::Some(chunk.len()));
        }
        drop(write);
        assert_eq!(pump.turn(&mut scratch, None), Flow::Ended);
        assert_eq!(pump.finish(None), b"abcde");
    }

    #[test]
    #[ignore = "a measurement: run alone, with --profile shim and --nocapture"]
    fn throughput_of_120_byte_lines() {
        let path = std::env::temp_dir().join(format!("berth-test-pump-{}", std::process::id()));
        let (read, write) = output_pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&read, 1 << 20).unwrap();
        let block = format!("{}\n", "x".repeat(119)).repeat(546).into_bytes();
        let total = 1_usize << 30;
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            for _ in 0..total / block.len() {
                std::io::Write::write_all(&mut file, &block).unwrap();
            }
        });
        let mut log = LogFile::open(&path).unwrap();
        let mut pump = Pump::new(read, 1, Pump::log(Stream::Stdout));
        let mut scratch = Scratch::default();
        let start = Instant::now();
        loop {
            match pump.turn(&mut scratch, Some(&mut log)) {
                Flow::Ended => break,
                Flow::Some(_) => {}
                Flow::Empty => {
                    poll(&mut [PollFd::new(&pump, PollFlags::IN)], None).unwrap();
                }
            }
        }
        let took: Duration = start.elapsed();
        writer.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        println!("{:.0} MB/s", total as f64 / took.as_secs_f64() / 1e6);
    }
}
