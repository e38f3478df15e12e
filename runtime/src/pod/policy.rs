//! Pure decisions: what a request meets, and what cannot be honoured.

use super::spec::{ContainerSpec, Mount, PodSpec, Profile, Propagation, Scope, Security};
use super::state::Phase;
use super::{Error, Result};
use crate::spec::Host;
use crate::store::ContainerPhase;

/// What becomes of a request to make something whose name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meets {
    /// It gets the result of the work under way.
    Join,
    /// It gets what that work has made.
    Same,
    /// It ends the work under way, then begins.
    Supersede,
    /// Begin when the old one, which is going, has gone.
    Await,
    /// The name is taken.
    Refuse,
}

/// A RunPodSandbox under a key that has a pod. `equal`: the requests are the same.
pub(crate) fn pod_meets(phase: Phase, equal: bool) -> Meets {
    match (phase, equal) {
        (Phase::Making, true) => Meets::Join,
        (Phase::Making, false) => Meets::Supersede,
        // A kubelet whose deadline passed asks again for what was made meanwhile.
        (Phase::Ready, true) => Meets::Same,
        (Phase::Removing | Phase::Gone, _) => Meets::Await,
        (Phase::Ready | Phase::Stopping | Phase::NotReady, _) => Meets::Refuse,
    }
}

/// The same for a CreateContainer.
pub(crate) fn container_meets(phase: ContainerPhase, equal: bool) -> Meets {
    match (phase, equal) {
        (ContainerPhase::Making, true) => Meets::Join,
        (ContainerPhase::Making, false) => Meets::Supersede,
        (ContainerPhase::Created, true) => Meets::Same,
        (ContainerPhase::Removing, _) => Meets::Await,
        _ => Meets::Refuse,
    }
}

/// Refuses what this host or this build cannot honour in a pod.
pub(crate) fn check_pod(spec: &PodSpec, host: &Host) -> Result<()> {
    let at = "linux.security_context";
    check_security(at, &spec.security, host, false)?;
    if let Some(why) = host.no_user_namespaces.as_deref().filter(|_| spec.namespaces.user) {
        let field = format!("{at}.namespace_options.userns_options.mode");
        let why = format!("this machine can't give pods user namespaces: {why}");
        return Err(Error::invalid(field, "POD", why));
    }
    for (name, value) in &spec.sysctls {
        check_sysctl(spec, name, value)?;
    }
    if spec.namespaces.network == Scope::Node
        && let Some(port) =
            spec.port_mappings.iter().find(|p| p.host_port != 0 && p.host_port != p.container_port)
    {
        return Err(Error::invalid(
            "port_mappings.host_port",
            port.host_port.to_string(),
            format!("a pod on the host's network listens on its own port {}", port.container_port),
        ));
    }
    Ok(())
}

/// Only what belongs to a namespace of the pod's own may be set.
fn check_sysctl(spec: &PodSpec, name: &str, value: &str) -> Result<()> {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    const UTS: &[&str] = &["kernel.domainname"];
    let dotted = name.replace('/', ".");
    let host = |scope: &Scope| *scope == Scope::Node;
    let (known, hosts) = if dotted.starts_with("net.") {
        (true, host(&spec.namespaces.network))
    } else if dotted.starts_with("fs.mqueue.") || IPC.contains(&dotted.as_str()) {
        (true, host(&spec.namespaces.ipc))
    } else {
        (UTS.contains(&dotted.as_str()), host(&spec.namespaces.network))
    };
    let refuse = |why: &str| Err(Error::invalid(format!("linux.sysctls[{name}]"), value, why));
    match (known, hosts) {
        (false, _) => refuse("this sysctl belongs to no namespace"),
        (true, true) => refuse("the pod shares the host's namespace of this sysctl"),
        (true, false) => Ok(()),
    }
}

/// Refuses what this host or this build cannot honour in a container of `pod`.
pub(crate) fn check_container(spec: &ContainerSpec, pod: &PodSpec, host: &Host) -> Result<()> {
    let at = "linux.security_context";
    check_security(at, &spec.security, host, spec.privileged)?;
    if spec.privileged && !pod.privileged {
        let field = format!("{at}.privileged");
        return Err(Error::invalid(field, "true", "the pod sandbox is not privileged"));
    }
    check_user(spec, pod)?;
    if let Scope::Target(id) = &spec.namespaces.pid {
        let field = format!("{at}.namespace_options.target_id");
        return Err(Error::invalid(
            field,
            id.as_str(),
            "a target's namespaces are not supported yet",
        ));
    }
    if let Some(device) = spec.cdi_devices.first() {
        return Err(Error::invalid("CDI_devices", device.as_str(), "CDI is not supported yet"));
    }
    check_mounts(spec)
}

/// A container is in its pod's user namespace, whether it says so or not.
fn check_user(spec: &ContainerSpec, pod: &PodSpec) -> Result<()> {
    let at = "linux.security_context";
    if spec.namespaces.user && spec.namespaces.ids != pod.namespaces.ids {
        let field = format!("{at}.namespace_options.userns_options.uids");
        return Err(Error::invalid(field, "(set)", "the pod sandbox maps ids in another way"));
    }
    if !pod.namespaces.user {
        return Ok(());
    }
    let ids = &pod.namespaces.ids;
    let who = &spec.security.run_as;
    let why = "this id is not mapped in the pod's user namespace";
    let user = who.user.filter(|id| ids.uid(*id).is_none()).map(|id| ("run_as_user", id));
    let group = who.group.filter(|id| ids.gid(*id).is_none()).map(|id| ("run_as_group", id));
    let further = who.supplemental_groups.iter().find(|id| ids.gid(**id).is_none());
    let further = further.map(|id| ("supplemental_groups", *id));
    if let Some((name, id)) = user.or(group).or(further) {
        return Err(Error::invalid(format!("{at}.{name}"), id.to_string(), why));
    }
    let shared = |mount: &Mount| mount.propagation == Propagation::Bidirectional;
    match spec.mounts.iter().position(shared) {
        Some(index) => {
            let why = "what is mounted in a user namespace can't be seen on the host";
            let field = format!("mounts[{index}].propagation");
            Err(Error::invalid(field, "Bidirectional", why))
        }
        None => Ok(()),
    }
}

fn check_mounts(spec: &ContainerSpec) -> Result<()> {
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let plain = mount.readonly && mount.propagation == Propagation::Private;
        if mount.recursive_read_only && !plain {
            let why = "it needs readonly, and private propagation";
            return Err(Error::invalid(field("recursive_read_only"), "true", why));
        }
        if mount.image.is_some() && mount.id_mapped {
            let why = "ids of image volumes can't be mapped yet";
            return Err(Error::invalid(field("uidMappings"), mount.container_path.as_str(), why));
        }
        if mount.host_path.is_empty() && mount.image.is_none() {
            return Err(Error::invalid(field("host_path"), "", "it names nothing"));
        }
    }
    Ok(())
}

fn check_security(at: &str, asked: &Security, host: &Host, privileged: bool) -> Result<()> {
    match &asked.seccomp {
        // As everywhere, a privileged container is not filtered.
        _ if privileged => {}
        None | Some(Profile::Unconfined) => {}
        Some(profile) => {
            let why = "seccomp filters are not supported yet; only Unconfined is";
            return Err(Error::invalid(format!("{at}.seccomp"), profile.text(), why));
        }
    }
    match &asked.apparmor {
        _ if privileged => {}
        None | Some(Profile::Unconfined) => {}
        // Where the kernel has no AppArmor there is nothing to confine with, here as elsewhere.
        Some(Profile::RuntimeDefault) if !host.apparmor => {}
        Some(profile) => {
            let why = "AppArmor profiles are not supported yet";
            return Err(Error::invalid(format!("{at}.apparmor"), profile.text(), why));
        }
    }
    match &asked.selinux {
        Some(label) if host.selinux && *label != super::spec::SelinuxLabel::default() => {
            let value = format!("{}:{}:{}:{}", label.user, label.role, label.kind, label.level);
            let why = "SELinux labels are not supported yet";
            Err(Error::invalid(format!("{at}.selinux_options"), value, why))
        }
        _ => Ok(()),
    }
}

impl Profile {
    fn text(&self) -> String {
        match self {
            Self::RuntimeDefault => "RuntimeDefault".to_owned(),
            Self::Unconfined => "Unconfined".to_owned(),
            Self::Localhost(name) => format!("Localhost:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::spec::{IdMaps, IdRange};
    use crate::pod::tests::{container_spec, pod_spec};

    #[test]
    fn a_retry_never_meets_a_reserved_name() {
        use Phase::*;
        let cases = [
            (Making, true, Meets::Join),
            (Making, false, Meets::Supersede),
            (Ready, true, Meets::Same),
            (Ready, false, Meets::Refuse),
            (NotReady, true, Meets::Refuse),
            (Removing, true, Meets::Await),
            (Gone, false, Meets::Await),
        ];
        for (phase, equal, meets) in cases {
            assert_eq!(pod_meets(phase, equal), meets, "{phase:?} {equal}");
        }
        assert_eq!(container_meets(ContainerPhase::Making, true), Meets::Join);
        assert_eq!(container_meets(ContainerPhase::Created, true), Meets::Same);
        assert_eq!(container_meets(ContainerPhase::Exited, true), Meets::Refuse);
    }

    fn field(result: Result<()>) -> String {
        match result {
            Err(Error::Invalid { field, .. }) => field,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let host = Host { selinux: true, ..Host::default() };
        let pod = pod_spec();
        let with = |change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = container_spec();
            change(&mut spec);
            field(check_container(&spec, &pod, &host))
        };
        assert_eq!(with(&|_| ()), "Ok(())");
        assert_eq!(with(&|s| s.security.seccomp = Some(Profile::Unconfined)), "Ok(())");
        let seccomp = "linux.security_context.seccomp";
        assert_eq!(with(&|s| s.security.seccomp = Some(Profile::RuntimeDefault)), seccomp);
        let apparmor = "linux.security_context.apparmor";
        assert_eq!(with(&|s| s.security.apparmor = Some(Profile::Localhost("x".into()))), apparmor);
        let selinux = "linux.security_context.selinux_options";
        assert_eq!(
            with(&|s| s.security.selinux = Some(super::super::spec::SelinuxLabel {
                level: "s0".into(),
                ..Default::default()
            })),
            selinux
        );
        let user = "linux.security_context.namespace_options.userns_options.uids";
        let ids = || {
            let ranges = vec![IdRange { container: 0, host: 100_000, length: 1000 }];
            IdMaps { uids: ranges.clone(), gids: ranges }
        };
        let mapped = |spec: &mut ContainerSpec| {
            spec.namespaces.user = true;
            spec.namespaces.ids = ids();
        };
        assert_eq!(with(&mapped), user);
        let mut inside = pod_spec();
        inside.namespaces.user = true;
        inside.namespaces.ids = ids();
        let within = |change: &dyn Fn(&mut ContainerSpec)| {
            let mut spec = container_spec();
            change(&mut spec);
            field(check_container(&spec, &inside, &host))
        };
        assert_eq!(within(&|_| ()), "Ok(())");
        assert_eq!(within(&mapped), "Ok(())");
        let context = "linux.security_context";
        let user = |s: &mut ContainerSpec| s.security.run_as.user = Some(1000);
        assert_eq!(within(&user), format!("{context}.run_as_user"));
        let groups = |s: &mut ContainerSpec| s.security.run_as.supplemental_groups = vec![1, 2000];
        assert_eq!(within(&groups), format!("{context}.supplemental_groups"));
        let no = Host { no_user_namespaces: Some("too old".into()), ..Host::default() };
        let mode = format!("{context}.namespace_options.userns_options.mode");
        assert_eq!(field(check_pod(&inside, &no)), mode);
        assert_eq!(field(check_pod(&inside, &Host::default())), "Ok(())");
        assert_eq!(with(&|s| s.cdi_devices.push("v.com/gpu=0".into())), "CDI_devices");
        assert_eq!(with(&|s| s.privileged = true), "linux.security_context.privileged");
    }

    #[test]
    fn sysctls_stay_inside_the_pod() {
        let cases = [
            ("net.ipv4.ip_forward", Scope::Pod, true),
            ("net/ipv4/ip_forward", Scope::Pod, true),
            ("net.ipv4.ip_forward", Scope::Node, false),
            ("kernel.shm_rmid_forced", Scope::Pod, true),
            ("fs.mqueue.msg_max", Scope::Pod, true),
            ("kernel.hostname", Scope::Pod, false),
            ("vm.swappiness", Scope::Pod, false),
        ];
        for (name, network, good) in cases {
            let mut spec = pod_spec();
            spec.namespaces.network = network;
            spec.sysctls.insert(name.into(), "1".into());
            assert_eq!(check_pod(&spec, &Host::default()).is_ok(), good, "{name}");
        }
    }
}
