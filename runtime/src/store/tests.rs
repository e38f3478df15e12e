use super::*;
use crate::pod::tests::{container_record, pod_spec};

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("berth-test-store-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pod_record(n: u8) -> PodRecord {
    PodRecord {
        id: PodId::from_random([n; 32]),
        spec: pod_spec(),
        phase: PodPhase::Ready,
        created_at: 1,
        boot: "boot".into(),
        cgroup_parent: "/berth".into(),
        ips: vec!["10.0.0.1".parse().unwrap()],
        init: Some((1, 2)),
        leftovers: vec![crate::pod::cleanup::Cleanup::Network],
    }
}

#[test]
fn what_was_saved_is_loaded() {
    let dir = Dir::new("load");
    let store = Store::open(&dir.0).unwrap();
    let pod = pod_record(2);
    let container = container_record();
    store.save_pod(&pod).unwrap();
    store.save_container(&container).unwrap();
    let all = store.load().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].pod, pod);
    assert_eq!(all[0].containers, std::slice::from_ref(&container));
    store.remove_container(&pod.id, &container.id).unwrap();
    store.remove_container(&pod.id, &container.id).unwrap();
    assert!(store.load().unwrap()[0].containers.is_empty());
    store.remove_pod(&pod.id).unwrap();
    store.remove_pod(&pod.id).unwrap();
    assert!(store.load().unwrap().is_empty());
}

#[test]
fn a_torn_record_is_moved_aside_and_the_rest_is_loaded() {
    let dir = Dir::new("torn");
    let store = Store::open(&dir.0).unwrap();
    let (whole, torn) = (pod_record(2), pod_record(3));
    store.save_pod(&whole).unwrap();
    store.save_container(&container_record()).unwrap();
    store.save_pod(&torn).unwrap();
    let path = store.pod_dir(&torn.id).join("pod.json");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    let container = store.container(&whole.id, &container_record().id);
    std::fs::write(&container, b"").unwrap();

    let all = store.load().unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].pod.id, whole.id);
    assert!(all[0].containers.is_empty());
    assert_eq!(std::fs::read_dir(dir.0.join("torn")).unwrap().count(), 2);
    assert!(!store.pod_dir(&torn.id).exists());
}

#[test]
fn a_failed_write_leaves_the_old_record() {
    let dir = Dir::new("failed");
    let store = Store::open(&dir.0).unwrap();
    let pod = pod_record(2);
    store.save_pod(&pod).unwrap();
    // A directory where the temporary file would be: the write fails as on a full disk.
    let temporary = store.pod_dir(&pod.id).join("pod.tmp");
    std::fs::create_dir(&temporary).unwrap();
    let changed = PodRecord { phase: PodPhase::NotReady, ..pod.clone() };
    assert!(store.save_pod(&changed).is_err());
    assert_eq!(store.load().unwrap()[0].pod, pod);
}
