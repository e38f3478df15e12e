//! Commands in containers.

use std::time::Duration;

use berth_proto::cri;

use super::code::Failure;
use super::{Front, MAX_MESSAGE, parse};

/// What an answer needs beside the bytes of its two streams.
const FRAMING: usize = 1024;

/// Runs a command and answers with what it wrote. More output than an answer can carry is cut:
/// kubelet drops a larger message as a whole. A command that outlives its caller's `patience` is
/// ended like one that outlives the request's limit.
pub(super) async fn exec_sync(
    front: &Front,
    request: &cri::ExecSyncRequest,
    patience: Option<Duration>,
) -> Result<cri::ExecSyncResponse, Failure> {
    let id = parse::id("container_id", &request.container_id)?;
    let argv = parse::argv("cmd", &request.cmd)?;
    let seconds = parse::seconds("timeout", request.timeout)?;
    let asked = (seconds > 0).then(|| Duration::from_secs(seconds));
    let timeout = [asked, patience].into_iter().flatten().min();
    let mut output = front.roster.exec_sync(id, argv, timeout).await?;
    fit(&mut output.stdout, &mut output.stderr, MAX_MESSAGE - FRAMING);
    Ok(cri::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}

/// Cuts the two to `room` bytes in all; one that is shorter than half keeps all of its own.
fn fit(stdout: &mut Vec<u8>, stderr: &mut Vec<u8>, room: usize) {
    let half = room / 2;
    let first = room - stderr.len().min(half);
    stdout.truncate(first);
    stderr.truncate(room - stdout.len());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_streams_fit_one_message() {
        let cases = [
            ((10, 10), (10, 10)),
            ((200, 0), (100, 0)),
            ((0, 200), (0, 100)),
            ((200, 200), (50, 50)),
            ((200, 30), (70, 30)),
            ((30, 200), (30, 70)),
        ];
        for ((out, err), (kept_out, kept_err)) in cases {
            let (mut stdout, mut stderr) = (vec![b'o'; out], vec![b'e'; err]);
            fit(&mut stdout, &mut stderr, 100);
            assert_eq!((stdout.len(), stderr.len()), (kept_out, kept_err), "{out} {err}");
        }
    }
}
