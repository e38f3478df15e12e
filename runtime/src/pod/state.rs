//! The legal moves of a pod, as its driver knows it.
//!
//! ```text
//!            run ok            stop, shim died          stopped
//! Making ------------> Ready -----------------> Stopping -------> NotReady
//!    |                                              |                |
//!    | run failed, or ended                         | not stopped    | remove
//!    v                                              v                v
//!  Gone <---------------------------------------- Ready           Removing ---> Gone
//! ```

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// RunPodSandbox is under way.
    Making,
    /// It takes containers.
    Ready,
    /// StopPodSandbox is under way, or a dead shim's pod is being cleared up.
    Stopping,
    /// It takes no containers, and has no processes.
    NotReady,
    /// RemovePodSandbox is under way.
    Removing,
    /// Nobody can see it; only leftovers keep its driver.
    Gone,
}

impl Phase {
    /// Whether `next` may follow.
    pub(crate) fn may_become(self, next: Self) -> bool {
        use Phase::{Gone, Making, NotReady, Ready, Removing, Stopping};
        matches!(
            (self, next),
            (Making, Ready | Gone)
                | (Ready, Stopping)
                | (Stopping, NotReady | Ready)
                | (NotReady, Removing)
                | (Removing, Gone)
        )
    }

    /// Whether lists show it.
    pub(crate) fn visible(self) -> bool {
        !matches!(self, Self::Making | Self::Gone)
    }

    /// The word for messages.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Making => "being made",
            Self::Ready => "ready",
            Self::Stopping => "being stopped",
            Self::NotReady => "not ready",
            Self::Removing => "being removed",
            Self::Gone => "gone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Phase::{self, *};

    const ALL: [Phase; 6] = [Making, Ready, Stopping, NotReady, Removing, Gone];

    #[test]
    fn no_pod_comes_back_to_life() {
        for from in [NotReady, Removing, Gone] {
            for to in [Making, Ready, Stopping] {
                assert!(!from.may_become(to), "{from:?} -> {to:?}");
            }
        }
        assert!(ALL.iter().all(|to| !Gone.may_become(*to)));
    }

    #[test]
    fn every_pod_can_come_to_its_end() {
        let ways = [
            vec![Making, Gone],
            vec![Making, Ready, Stopping, NotReady, Removing, Gone],
            vec![Ready, Stopping, Ready],
        ];
        for way in ways {
            for pair in way.windows(2) {
                assert!(pair[0].may_become(pair[1]), "{pair:?}");
            }
        }
    }
}
