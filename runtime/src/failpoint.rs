//! Named steps that a test makes fail, or makes the daemon die at.
//!
//! Only with the feature `failpoints`; without it [`before`] and [`after`] are empty.
//! `BERTH_FAILPOINTS="run.network=error;create.task=abort;start.task+=abort"`: `error` makes the
//! step fail before its work, `abort` kills the daemon with SIGKILL; a `+` after the name puts
//! the point after the work. `name=error*N` fails only the first N times.

use crate::pod::Error;

/// Every step of every operation, in the order they run.
pub const NAMES: &[&str] = &[
    "run.record",
    "run.dirs",
    "run.shim",
    "run.namespaces",
    "run.network",
    "run.files",
    "run.commit",
    "create.record",
    "create.snapshot",
    "create.volumes",
    "create.spec",
    "create.bundle",
    "create.task",
    "create.unmount",
    "create.commit",
    "start.record",
    "start.task",
    "start.commit",
    "stop.containers",
    "stop.network",
    "stop.namespaces",
    "stop.commit",
];

/// What a point named `step` says before the step's work.
#[inline]
pub(crate) fn before(step: &'static str) -> Result<(), Error> {
    #[cfg(feature = "failpoints")]
    return on::hit(step, step);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = step;
        Ok(())
    }
}

/// What a point named `step+` says after the step's work.
#[inline]
pub(crate) fn after(step: &'static str) -> Result<(), Error> {
    #[cfg(feature = "failpoints")]
    return on::hit(step, &format!("{step}+"));
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = step;
        Ok(())
    }
}

#[cfg(feature = "failpoints")]
mod on {
    use std::collections::HashMap;
    use std::sync::{Arc, LazyLock, Mutex, PoisonError};

    use crate::pod::{Error, Kind};

    #[derive(Debug)]
    enum Action {
        Error { left: Option<u32> },
        Abort,
    }

    static POINTS: LazyLock<Mutex<HashMap<String, Action>>> =
        LazyLock::new(|| Mutex::new(parse(&std::env::var("BERTH_FAILPOINTS").unwrap_or_default())));

    fn parse(text: &str) -> HashMap<String, Action> {
        let mut points = HashMap::new();
        for part in text.split(';').filter(|p| !p.trim().is_empty()) {
            let (name, action) = part.trim().split_once('=').unwrap_or((part.trim(), "error"));
            let action = match action.split_once('*') {
                Some(("error", times)) => Action::Error { left: times.parse().ok() },
                _ if action == "abort" => Action::Abort,
                _ => Action::Error { left: None },
            };
            points.insert(name.to_owned(), action);
        }
        points
    }

    pub(super) fn hit(step: &'static str, point: &str) -> Result<(), Error> {
        let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
        match points.get_mut(point) {
            None | Some(Action::Error { left: Some(0) }) => Ok(()),
            Some(Action::Error { left }) => {
                *left = left.map(|n| n - 1);
                let source = std::io::Error::other(format!("failpoint {point}"));
                Err(Error::Step { step, source: Arc::new(source), kind: Kind::Internal })
            }
            Some(Action::Abort) => die(),
        }
    }

    /// As a power cut would: nothing of ours runs after this.
    fn die() -> Result<(), Error> {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        Err(Error::Draining)
    }
}
