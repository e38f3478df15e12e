//! When which output is read.
//!
//! A pump is read when its pipe is ready. A program that writes line by line would wake us for
//! each line, and pay for the waking; so a log that shows little but often is read by the clock
//! instead, each time all that came meanwhile, until it is busy or quiet again:
//!
//! ```text
//! by readiness --little, twice within RECENT--> by the clock, each PACE --much, or nothing--> by readiness
//! ```
//! The pipe holds far more than comes in one PACE, and its end wakes us at any time.

use std::time::{Duration, Instant};

use crate::io::pump::{Flow, Pump};
use crate::poll::{Interest, Token};
use crate::shim::Shim;

/// How long an idle shim keeps the buffers of its pumps.
const SCRATCH_KEPT: Duration = Duration::from_secs(1);
/// A read of at least this much is worth its waking.
const MUCH: usize = 64 << 10;
/// Reads that follow each other faster are too many.
const RECENT: Duration = Duration::from_millis(5);
/// Between two reads by the clock. At 280 MB/s half a megabyte comes meanwhile.
const PACE: Duration = Duration::from_millis(2);

impl Shim {
    /// Registers a pump of process `owner` and gives its number.
    pub(crate) fn add_pump(&mut self, pump: Pump) -> rustix::io::Result<u64> {
        let number = self.poll.number();
        self.poll.add(&pump, Token::Pump(number), Interest::IN)?;
        self.pumps.insert(number, pump);
        Ok(number)
    }

    /// A pump's pipe is ready, or its time has come.
    pub(crate) fn pump_ready(&mut self, number: u64) {
        let flow = self.turn_pump(number);
        if flow == Flow::Ended {
            self.end_pump(number);
        } else {
            self.pace(number, flow);
        }
    }

    fn pace(&mut self, number: u64, flow: Flow) {
        let Some(pump) = self.pumps.get_mut(&number).filter(|pump| pump.may_wait()) else { return };
        let little = matches!(flow, Flow::Some(count) if count < MUCH);
        let now = Instant::now();
        let often = pump.last_turn.replace(now).is_some_and(|last| now - last < RECENT);
        let pace = little && (pump.paced || often);
        let token = Token::Pump(number);
        if pace != pump.paced {
            // The end of the pipe is told in either case.
            let interest = if pace { Interest::empty() } else { Interest::IN };
            match self.poll.modify(&*pump, token, interest) {
                Ok(()) => pump.paced = pace,
                Err(error) => crate::log::say(format_args!("poll an output: {error}")),
            }
        }
        if pump.paced {
            self.poll.set_timer(now + PACE, token);
        }
    }

    /// Reads a pump once.
    fn turn_pump(&mut self, number: u64) -> Flow {
        let Some(pump) = self.pumps.get_mut(&number) else { return Flow::Empty };
        let log = self.containers.get_mut(&pump.owner).and_then(|c| c.log.as_mut());
        let flow = pump.turn(&mut self.scratch, log);
        if !pump.taps.is_empty() {
            self.settle_taps(number);
        }
        self.scratch_used = true;
        if !self.scratch_timed {
            self.scratch_timed = true;
            self.poll.set_timer(Instant::now() + SCRATCH_KEPT, Token::House);
        }
        flow
    }

    /// Takes what a pump's pipe still holds, then closes it, whoever may have it open.
    pub(crate) fn drain_pump(&mut self, number: u64) {
        /// More than a pipe holds: someone is still writing.
        const LIMIT: usize = 4 << 20;
        let mut taken = 0;
        while let Flow::Some(count) = self.turn_pump(number) {
            taken += count;
            if taken > LIMIT {
                break;
            }
        }
        self.end_pump(number);
    }

    fn end_pump(&mut self, number: u64) {
        let Some(mut pump) = self.pumps.remove(&number) else { return };
        self.poll.remove(&pump);
        if pump.paced {
            self.poll.clear_timers(Token::Pump(number));
        }
        let owner = pump.owner;
        self.end_taps(&mut pump);
        let log = self.containers.get_mut(&owner).and_then(|c| c.log.as_mut());
        let captured = pump.finish(log);
        if self.containers.contains_key(&owner) {
            self.container_pump_ended(owner, number);
        } else {
            self.exec_pump_ended(owner, number, captured);
        }
    }

    /// Frees the pumps' buffers once a whole period passed without a turn.
    pub(crate) fn keep_house(&mut self) {
        if std::mem::replace(&mut self.scratch_used, false) {
            self.poll.set_timer(Instant::now() + SCRATCH_KEPT, Token::House);
        } else {
            self.scratch_timed = false;
            self.scratch.release();
            berth_sys::resident::trim_memory();
        }
    }
}
