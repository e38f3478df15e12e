//! How containers end: waiting for it, and reading what the shim wrote down.

use berth_proto::exit::ExitRecord;
use berth_proto::ids::ContainerId;
use berth_proto::paths::PodPaths;

use super::house::PodEnv;
use crate::clock;
use crate::shim::ShimError;
use crate::store::{ContainerPhase, ContainerRecord};

/// Nobody knows how it ended.
const UNKNOWN: u32 = 255;
/// Killed by SIGKILL.
const KILLED: u32 = 137;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// 0-255.
    pub code: u32,
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// The kernel's OOM killer struck.
    pub oom: bool,
    /// Bytes of log that could not be written.
    pub log_bytes_lost: u64,
    /// None: as the code says. Some: the reason in one word, and in more.
    pub told: Option<(&'static str, String)>,
}

impl Ended {
    /// Nobody knows how.
    pub(crate) fn unknown(message: &str) -> Self {
        Self {
            code: UNKNOWN,
            at: clock::now(),
            oom: false,
            log_bytes_lost: 0,
            told: Some(("Unknown", message.to_owned())),
        }
    }

    /// Killed by us, since its shim had died.
    pub(crate) fn killed_with_shim() -> Self {
        let message = "the pod's shim died; what it left running was killed";
        Self {
            code: KILLED,
            at: clock::now(),
            oom: false,
            log_bytes_lost: 0,
            told: Some(("Error", message.to_owned())),
        }
    }

    /// The same, in the words of the CRI, in the container's record.
    pub(crate) fn put_into(self, record: &mut ContainerRecord) {
        let (reason, message) = match self.told {
            Some(told) => told,
            None if self.oom => ("OOMKilled", String::new()),
            None if self.code == 0 => ("Completed", String::new()),
            None => ("Error", String::new()),
        };
        record.phase = ContainerPhase::Exited;
        record.exit_code = i32::try_from(self.code).unwrap_or(i32::MAX);
        record.finished_at = self.at.max(record.started_at);
        record.reason = reason.to_owned();
        record.message = message;
        record.log_bytes_lost = self.log_bytes_lost;
        record.pid = 0;
    }
}

impl From<ExitRecord> for Ended {
    fn from(record: ExitRecord) -> Self {
        Self {
            code: record.exit_code,
            at: record.exited_at,
            oom: record.oom_killed,
            log_bytes_lost: record.log_bytes_lost,
            told: None,
        }
    }
}

/// What the shim wrote down of a container's end; None where it wrote nothing.
pub(crate) fn read(paths: &PodPaths, container: &ContainerId) -> Option<Ended> {
    let path = paths.exit(container);
    let text = std::fs::read(&path).ok()?;
    match serde_json::from_slice::<ExitRecord>(&text) {
        Ok(record) => Some(record.into()),
        Err(error) => {
            tracing::warn!(?path, %error, "exit record cannot be read");
            None
        }
    }
}

/// Waits for a container's end. None: the connection broke.
pub(crate) async fn wait(env: &PodEnv, container: &ContainerId) -> Option<Ended> {
    let shim = env.link()?.shim;
    let answered = shim.wait(container.as_str()).await;
    // What is on disk has more to say than the answer.
    if let Some(ended) = read(&env.paths, container) {
        return Some(ended);
    }
    match answered {
        Ok(exit) => Some(Ended {
            code: exit.code,
            at: if exit.at == 0 { clock::now() } else { exit.at },
            oom: false,
            log_bytes_lost: 0,
            told: None,
        }),
        Err(ShimError::Answer { message, .. }) => {
            tracing::warn!(pod = %env.id, %container, message, "shim does not know the container");
            Some(Ended::unknown("the shim does not know the container"))
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: u32, oom: bool) -> Ended {
        Ended { code, at: 7, oom, log_bytes_lost: 0, told: None }
    }

    #[test]
    fn an_end_is_told_in_the_words_of_the_cri() {
        let cases = [
            (exit(0, false), 0, "Completed"),
            (exit(3, false), 3, "Error"),
            (exit(137, true), 137, "OOMKilled"),
            (Ended::killed_with_shim(), 137, "Error"),
            (Ended::unknown("x"), 255, "Unknown"),
        ];
        for (ended, code, reason) in cases {
            let mut record = crate::pod::tests::container_record();
            record.started_at = 9;
            ended.put_into(&mut record);
            assert_eq!((record.exit_code, record.reason.as_str()), (code, reason));
            assert!(record.finished_at >= record.started_at);
            assert_eq!(record.phase, ContainerPhase::Exited);
        }
    }
}
