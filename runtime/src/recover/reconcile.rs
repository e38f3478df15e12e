//! What a restart makes of the records of containers. Pure.

use berth_proto::ids::ContainerId;

use crate::pod::exit::Ended;
use crate::shim::{Inventory, TaskPhase};
use crate::store::{ContainerPhase, ContainerRecord};

/// The containers of one pod after a restart.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// All that the records speak of, as they are now.
    pub containers: Vec<ContainerRecord>,
    /// Which of these differ from their record.
    pub changed: Vec<ContainerId>,
    /// Ended, but still known to the shim.
    pub spent: Vec<ContainerId>,
    /// Known to the shim, and to no record.
    pub strays: Vec<ContainerId>,
}

impl Found {
    fn keep(&mut self, old: &ContainerRecord, new: ContainerRecord) {
        if *old != new {
            self.changed.push(new.id.clone());
        }
        self.containers.push(new);
    }
}

fn alive(record: &ContainerRecord) -> bool {
    use ContainerPhase::{Created, Running, Starting};
    matches!(record.phase, Created | Starting | Running)
}

fn end_each(records: &[ContainerRecord], ended: impl Fn(&ContainerRecord) -> Ended) -> Found {
    let mut found = Found::default();
    for old in records {
        let mut new = old.clone();
        if alive(old) {
            ended(old).put_into(&mut new);
        }
        found.keep(old, new);
    }
    found
}

/// The node has started anew: nothing runs, and nobody knows how it ended.
pub(super) fn after_reboot(records: &[ContainerRecord]) -> Found {
    end_each(records, |_| Ended::unknown("the node was rebooted"))
}

/// The pod was stopped: whatever the records say, nothing runs.
pub(super) fn after_stop(
    records: &[ContainerRecord],
    exit: impl Fn(&ContainerId) -> Option<Ended>,
) -> Found {
    let lost = || Ended::unknown("the pod was stopped, and the container's exit code was lost");
    end_each(records, |record| exit(&record.id).unwrap_or_else(lost))
}

/// Nothing can be asked: as the records say.
pub(super) fn unheard(records: &[ContainerRecord]) -> Found {
    Found { containers: records.to_vec(), ..Found::default() }
}

/// As the shim says.
pub(super) fn with_shim(
    records: &[ContainerRecord],
    inventory: &Inventory,
    exit: impl Fn(&ContainerId) -> Option<Ended>,
) -> Found {
    let mut found = Found::default();
    for old in records {
        let task = inventory.tasks.iter().find(|task| task.id == old.id.as_str());
        let mut new = old.clone();
        if alive(old) {
            match task.map(|task| (task.phase, task.pid)) {
                Some((TaskPhase::Created, _)) => {
                    new.phase = ContainerPhase::Created;
                    new.started_at = 0;
                }
                Some((TaskPhase::Running | TaskPhase::Unknown, pid)) => {
                    new.phase = ContainerPhase::Running;
                    new.pid = pid;
                    if new.started_at == 0 {
                        new.started_at = crate::clock::now();
                    }
                }
                Some((TaskPhase::Stopped, _)) | None => {
                    let lost = || Ended::unknown("the container's exit code was lost");
                    end(&mut new, exit(&old.id).unwrap_or_else(lost));
                }
            }
        }
        let ended = new.phase == ContainerPhase::Exited;
        if ended && task.is_some() {
            found.spent.push(new.id.clone());
        }
        found.keep(old, new);
    }
    let known = |id: &str| records.iter().any(|record| record.id.as_str() == id);
    let tasks = inventory.tasks.iter().filter(|task| !known(&task.id));
    found.strays = tasks.filter_map(|task| ContainerId::parse(&task.id).ok()).collect();
    found
}

/// A container that was being started, and ended with the code of a program that could not be.
fn end(record: &mut ContainerRecord, mut ended: Ended) {
    const START_ERROR: u32 = 128;
    if record.phase == ContainerPhase::Starting && ended.code == START_ERROR {
        let message = "the program could not be started";
        ended.told = Some(("StartError", message.to_owned()));
    }
    ended.put_into(record);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::container_record;
    use crate::shim::Task;
    use ContainerPhase::{Created, Exited, Making, Removing, Running, Starting};

    fn record(phase: ContainerPhase) -> ContainerRecord {
        ContainerRecord { phase, ..container_record() }
    }

    fn ended(code: u32) -> Option<Ended> {
        Some(Ended { code, at: 5, oom: false, log_bytes_lost: 0, told: None })
    }

    #[test]
    fn the_shim_knows_what_became_of_a_container() {
        let cases = [
            (Created, Some(TaskPhase::Created), None, Created, 0),
            (Starting, Some(TaskPhase::Created), None, Created, 0),
            (Starting, Some(TaskPhase::Running), None, Running, 0),
            (Running, Some(TaskPhase::Running), None, Running, 0),
            (Running, Some(TaskPhase::Stopped), ended(3), Exited, 3),
            (Running, None, ended(4), Exited, 4),
            (Running, None, None, Exited, 255),
            (Starting, Some(TaskPhase::Stopped), ended(128), Exited, 128),
            (Making, Some(TaskPhase::Created), None, Making, 0),
            (Removing, None, None, Removing, 0),
        ];
        for (phase, task, exit, then, code) in cases {
            let old = record(phase);
            let id = old.id.to_string();
            let tasks = task.map(|phase| Task { id, phase, pid: 42 }).into_iter().collect();
            let inventory = Inventory { pod: String::new(), tasks };
            let found = with_shim(&[old], &inventory, |_| exit.clone());
            let new = &found.containers[0];
            assert_eq!((new.phase, new.exit_code), (then, code), "{phase:?} {task:?}");
            assert_eq!(found.spent.len(), usize::from(then == Exited && task.is_some()));
            assert!(found.strays.is_empty());
        }
    }

    #[test]
    fn a_failed_start_is_told_as_one() {
        let inventory = Inventory { pod: String::new(), tasks: Vec::new() };
        let found = with_shim(&[record(Starting)], &inventory, |_| ended(128));
        assert_eq!(found.containers[0].reason, "StartError");
        let found = with_shim(&[record(Running)], &inventory, |_| ended(128));
        assert_eq!(found.containers[0].reason, "Error");
    }

    #[test]
    fn what_no_record_speaks_of_is_a_stray() {
        let stray = ContainerId::from_random([9; 32]);
        let task = Task { id: stray.to_string(), phase: TaskPhase::Running, pid: 1 };
        let inventory = Inventory { pod: String::new(), tasks: vec![task] };
        let found = with_shim(&[record(Exited)], &inventory, |_| None);
        assert_eq!(found.strays, [stray]);
        assert!(found.changed.is_empty());
    }

    #[test]
    fn after_a_reboot_nothing_runs() {
        for phase in [Created, Starting, Running] {
            let found = after_reboot(&[record(phase)]);
            let new = &found.containers[0];
            assert_eq!((new.phase, new.exit_code), (Exited, 255));
            assert_eq!(new.reason, "Unknown");
            assert_eq!(found.changed.len(), 1);
        }
        assert!(after_reboot(&[record(Exited)]).changed.is_empty());
    }
}
