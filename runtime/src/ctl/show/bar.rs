//! Progress on a terminal: the same few lines, drawn again and again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use berth_proto::control::Transfer;

use super::frame::{View, amounts};
use super::terminal;

/// The rate is that of the last few seconds.
const WINDOW: Duration = Duration::from_secs(5);

pub(crate) struct Bar {
    length: Option<u64>,
    /// Lines on the screen that are drawn over next time.
    drawn: usize,
    samples: VecDeque<(Instant, u64)>,
    last: Option<Transfer>,
}

impl Bar {
    pub(super) fn new(length: Option<u64>) -> Self {
        Self { length, drawn: 0, samples: VecDeque::new(), last: None }
    }

    pub(super) fn show(&mut self, transfer: Transfer) -> io::Result<()> {
        let (done, _) = amounts(&transfer, self.length);
        let rate = self.rate(done);
        self.draw(&transfer, rate)?;
        self.last = Some(transfer);
        Ok(())
    }

    /// What was last seen may be from before the end.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let Some(mut transfer) = self.last.take() else { return Ok(()) };
        transfer.state = "done".to_owned();
        for layer in transfer.layers.iter_mut().filter(|layer| layer.state != "shared") {
            layer.state = "done".to_owned();
            layer.transferred = layer.size;
        }
        self.draw(&transfer, 0)
    }

    fn draw(&mut self, transfer: &Transfer, rate: u64) -> io::Result<()> {
        let (columns, rows) = terminal::size();
        let view = View { transfer, length: self.length, rate, columns, rows };
        let lines = view.lines();
        let mut text = String::new();
        if self.drawn > 0 {
            // ECMA-48: cursor up to the first line; what is below is erased line by line.
            text.push_str(&format!("\x1b[{}F", self.drawn));
        }
        for line in &lines {
            text.push_str(&format!("{line}\x1b[K\n"));
        }
        text.push_str("\x1b[J");
        self.drawn = lines.len();
        let mut out = io::stderr().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn rate(&mut self, done: u64) -> u64 {
        let now = Instant::now();
        if self.samples.back().is_some_and(|(_, before)| *before > done) {
            // Another image of the archive, or a layer that begins again.
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        while self.samples.front().is_some_and(|(then, _)| now - *then > WINDOW) {
            self.samples.pop_front();
        }
        let Some((then, before)) = self.samples.front() else { return 0 };
        let took = (now - *then).as_millis();
        let rate = (u128::from(done - before) * 1000).checked_div(took).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}
