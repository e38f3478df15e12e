//! Which items a list request asks for. All parts of a filter must match; an id may be the
//! beginning of one, and one that nothing has gives an empty list.

use std::collections::{BTreeMap, HashMap};

use berth_proto::cri;

use super::parse::choice;
use super::render;
use crate::pod::{ContainerSnapshot, PodSnapshot, Result};

/// Which pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    id: String,
    ready: Option<bool>,
    labels: HashMap<String, String>,
}

impl Pods {
    pub(super) fn parse(filter: Option<cri::PodSandboxFilter>) -> Result<Self> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let ready = |state: cri::PodSandboxStateValue| {
            let state: cri::PodSandboxState = choice("filter.state.state", state.state)?;
            Ok(state == cri::PodSandboxState::SandboxReady)
        };
        Ok(Self {
            id: filter.id,
            ready: filter.state.map(ready).transpose()?,
            labels: filter.label_selector,
        })
    }

    pub(super) fn takes(&self, pod: &PodSnapshot) -> bool {
        pod.id.as_str().starts_with(&self.id)
            && self.ready.is_none_or(|ready| ready == pod.ready)
            && has_labels(&pod.spec.labels, &self.labels)
    }
}

/// Which containers.
#[derive(Debug, Default)]
pub(super) struct Containers {
    id: String,
    pod: String,
    state: Option<cri::ContainerState>,
    labels: HashMap<String, String>,
}

impl Containers {
    pub(super) fn parse(filter: Option<cri::ContainerFilter>) -> Result<Self> {
        let Some(filter) = filter else { return Ok(Self::default()) };
        let state = |state: cri::ContainerStateValue| choice("filter.state.state", state.state);
        Ok(Self {
            id: filter.id,
            pod: filter.pod_sandbox_id,
            state: filter.state.map(state).transpose()?,
            labels: filter.label_selector,
        })
    }

    pub(super) fn takes(&self, container: &ContainerSnapshot) -> bool {
        container.id.as_str().starts_with(&self.id)
            && container.pod.as_str().starts_with(&self.pod)
            && self.state.is_none_or(|state| state == render::container_state(container.state))
            && has_labels(&container.spec.labels, &self.labels)
    }
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use crate::pod::ContainerState;

    fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn state(state: cri::PodSandboxState) -> Option<cri::PodSandboxStateValue> {
        Some(cri::PodSandboxStateValue { state: state.into() })
    }

    #[test]
    fn all_parts_of_a_pod_filter_must_match() {
        use cri::PodSandboxState::{SandboxNotready, SandboxReady};
        let pod = samples::pod(0xab, &[("app", "web"), ("tier", "x")]);
        let empty = cri::PodSandboxFilter::default;
        let cases = [
            (empty(), true),
            (cri::PodSandboxFilter { id: "abab".into(), ..empty() }, true),
            (cri::PodSandboxFilter { id: "ab".repeat(32), ..empty() }, true),
            (cri::PodSandboxFilter { id: "abac".into(), ..empty() }, false),
            (cri::PodSandboxFilter { state: state(SandboxReady), ..empty() }, true),
            (cri::PodSandboxFilter { state: state(SandboxNotready), ..empty() }, false),
            (cri::PodSandboxFilter { label_selector: labels(&[("app", "web")]), ..empty() }, true),
            (cri::PodSandboxFilter { label_selector: labels(&[("app", "db")]), ..empty() }, false),
            (
                cri::PodSandboxFilter {
                    label_selector: labels(&[("app", "web"), ("no", "")]),
                    ..empty()
                },
                false,
            ),
            (
                cri::PodSandboxFilter {
                    id: "ab".into(),
                    state: state(SandboxReady),
                    label_selector: labels(&[("app", "web"), ("tier", "x")]),
                },
                true,
            ),
        ];
        assert!(Pods::parse(None).unwrap().takes(&pod));
        for (filter, expected) in cases {
            let text = format!("{filter:?}");
            assert_eq!(Pods::parse(Some(filter)).unwrap().takes(&pod), expected, "{text}");
        }
        let bad = cri::PodSandboxStateValue { state: 2 };
        let bad = cri::PodSandboxFilter { state: Some(bad), ..empty() };
        assert!(Pods::parse(Some(bad)).unwrap_err().to_string().contains("filter.state"));
    }

    #[test]
    fn all_parts_of_a_container_filter_must_match() {
        let mut container = samples::container(0xc1, 0xab, &[("app", "web")]);
        container.state = ContainerState::Exited;
        let empty = cri::ContainerFilter::default;
        let state =
            |state: cri::ContainerState| Some(cri::ContainerStateValue { state: state.into() });
        let cases = [
            (empty(), true),
            (cri::ContainerFilter { id: "c1c1".into(), ..empty() }, true),
            (cri::ContainerFilter { id: "ab".into(), ..empty() }, false),
            (cri::ContainerFilter { pod_sandbox_id: "abab".into(), ..empty() }, true),
            (cri::ContainerFilter { pod_sandbox_id: "c1".into(), ..empty() }, false),
            (
                cri::ContainerFilter {
                    state: state(cri::ContainerState::ContainerExited),
                    ..empty()
                },
                true,
            ),
            (
                cri::ContainerFilter {
                    id: "c1".into(),
                    state: state(cri::ContainerState::ContainerRunning),
                    ..empty()
                },
                false,
            ),
            (cri::ContainerFilter { label_selector: labels(&[("app", "")]), ..empty() }, false),
        ];
        assert!(Containers::parse(None).unwrap().takes(&container));
        for (filter, expected) in cases {
            let text = format!("{filter:?}");
            assert_eq!(
                Containers::parse(Some(filter)).unwrap().takes(&container),
                expected,
                "{text}"
            );
        }
    }
}
