//! Output of a command that is longer than one answer may be: the rest is kept for a while and
//! given in parts.

use std::time::{Duration, Instant};

use crate::poll::Token;
use crate::service::Reply;
use crate::shim::Shim;
use crate::ttrpc::{MAX_PAYLOAD, Status};

/// Bytes of one part, both streams together: what a message takes, but for its envelopes.
const PART: usize = MAX_PAYLOAD - (64 << 10);
/// How long the next part is waited for.
const KEPT: Duration = Duration::from_secs(30);

/// What has not been given yet.
#[derive(Debug)]
pub(crate) struct Rest {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Shim {
    /// Cuts both down to what one answer holds and keeps the rest under a number. 0: there is no
    /// rest.
    pub(crate) fn keep_rest(&mut self, stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> u64 {
        let rest = cut(stdout, stderr);
        if rest.stdout.is_empty() && rest.stderr.is_empty() {
            return 0;
        }
        let number = self.poll.number();
        self.keep(number, rest);
        number
    }

    /// Gives the next part.
    pub(crate) fn read_output(&mut self, number: u64) -> Result<Reply, Status> {
        let Some(Rest { mut stdout, mut stderr }) = self.rests.remove(&number) else {
            return Err(Status::not_found(format!("output {number} not found")));
        };
        self.poll.clear_timers(Token::Deadline(number));
        let rest = cut(&mut stdout, &mut stderr);
        let last = rest.stdout.is_empty() && rest.stderr.is_empty();
        if !last {
            self.keep(number, rest);
        }
        Ok(Reply::Output { stdout, stderr, last })
    }

    fn keep(&mut self, number: u64, rest: Rest) {
        self.poll.set_timer(Instant::now() + KEPT, Token::Deadline(number));
        self.rests.insert(number, rest);
    }
}

/// Leaves one part in the arguments and gives what is over.
fn cut(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> Rest {
    let out = stdout.len().min(PART);
    let err = stderr.len().min(PART - out);
    Rest { stdout: stdout.split_off(out), stderr: stderr.split_off(err) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_whole() {
        for (out, err) in [(0, 0), (PART, 0), (PART - 1, 5), (5, PART), (3 * PART + 1, 2 * PART)] {
            let (mut stdout, mut stderr) = (vec![1; out], vec![2; err]);
            let mut sums = (0, 0);
            loop {
                let rest = cut(&mut stdout, &mut stderr);
                assert!(stdout.len() + stderr.len() <= PART);
                sums = (sums.0 + stdout.len(), sums.1 + stderr.len());
                if rest.stdout.is_empty() && rest.stderr.is_empty() {
                    break;
                }
                (stdout, stderr) = (rest.stdout, rest.stderr);
            }
            assert_eq!(sums, (out, err));
        }
    }
}
