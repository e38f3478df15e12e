//! What lists and status read: replaced after each change, never waited for.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{ContainerSnapshot, Error, PodSnapshot, Result};

#[derive(Debug, Default)]
struct Inner {
    pods: BTreeMap<String, Arc<PodSnapshot>>,
    containers: BTreeMap<String, Arc<ContainerSnapshot>>,
}

/// All snapshots. The lock is held for look-ups and replacements only.
#[derive(Debug, Default)]
pub(crate) struct Published(RwLock<Inner>);

impl Published {
    /// Replaces what is said of a pod and of its containers.
    pub(crate) fn put(&self, pod: PodSnapshot) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        drop_containers(&mut inner, pod.id.as_str());
        for container in &pod.containers {
            inner.containers.insert(container.id.to_string(), container.clone());
        }
        inner.pods.insert(pod.id.to_string(), Arc::new(pod));
    }

    /// The pod is gone.
    pub(crate) fn remove(&self, pod: &str) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        drop_containers(&mut inner, pod);
        inner.pods.remove(pod);
    }

    pub(crate) fn pods(&self) -> Vec<Arc<PodSnapshot>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = inner.pods.values().cloned().collect();
        all.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        all
    }

    pub(crate) fn containers(&self) -> Vec<Arc<ContainerSnapshot>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = inner.containers.values().cloned().collect();
        all.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        all
    }

    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodSnapshot>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        find(&inner.pods, id).ok_or_else(|| Error::NoPod { id: id.to_owned() })
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerSnapshot>> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        find(&inner.containers, id).ok_or_else(|| Error::NoContainer { id: id.to_owned() })
    }
}

fn drop_containers(inner: &mut Inner, pod: &str) {
    let Some(old) = inner.pods.get(pod) else { return };
    for container in &old.containers {
        inner.containers.remove(container.id.as_str());
    }
}

/// The one thing whose id is, or begins with, `id`. None when there is none, or more than one.
fn find<T: Clone>(all: &BTreeMap<String, T>, id: &str) -> Option<T> {
    if id.is_empty() {
        return None;
    }
    let mut found = all.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let first = found.next()?;
    (first.0 == id || found.next().is_none()).then(|| first.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_shortened_while_it_is_unique() {
        let all: BTreeMap<String, u32> =
            [("ab1", 1), ("ab2", 2), ("b", 3), ("bc", 4)].map(|(k, v)| (k.to_owned(), v)).into();
        let cases = [
            ("ab1", Some(1)),
            ("ab", None),
            ("b", Some(3)),
            ("bc", Some(4)),
            ("", None),
            ("c", None),
            ("ab11", None),
        ];
        for (id, found) in cases {
            assert_eq!(find(&all, id), found, "{id:?}");
        }
    }
}
