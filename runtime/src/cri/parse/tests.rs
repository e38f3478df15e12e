//! Tables of bad requests: each must be refused with the field's path and the value.

use berth_proto::cri;

use super::*;
use crate::pod::spec::{PodSpec, Profile, Propagation, Scope};
use crate::pod::{Error, Kind, Result};

fn run_request() -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web-0".into(),
                uid: "uid-1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/web-0".into(),
            dns_config: Some(cri::DnsConfig {
                servers: vec!["10.96.0.10".into(), "fe80::1%eth0".into()],
                searches: vec!["default.svc.cluster.local".into(), ".".into()],
                options: vec!["ndots:5".into()],
            }),
            port_mappings: vec![cri::PortMapping {
                protocol: cri::Protocol::Udp.into(),
                container_port: 53,
                host_port: 0,
                host_ip: "::1".into(),
            }],
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: [("a/b".to_owned(), "c\nd".to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods//burstable/pod1/".into(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption {
                        pid: cri::NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                sysctls: [("net/ipv4/conf/eth0.1/forwarding".to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            windows: None,
        }),
        runtime_handler: String::new(),
    }
}

fn create_request() -> cri::CreateContainerRequest {
    cri::CreateContainerRequest {
        pod_sandbox_id: "ab".into(),
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 1 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            command: vec!["/bin/sh".into()],
            args: vec!["-c".into(), String::new()],
            working_dir: "/work".into(),
            envs: vec![cri::KeyValue { key: "A.b-c".into(), value: b"x=y".to_vec() }],
            mounts: vec![cri::Mount {
                container_path: "/data".into(),
                host_path: "/srv/data".into(),
                propagation: cri::MountPropagation::PropagationBidirectional.into(),
                ..Default::default()
            }],
            devices: vec![cri::Device {
                container_path: "/dev/x".into(),
                host_path: "/dev/null".into(),
                permissions: "rw".into(),
            }],
            log_path: "main/0.log".into(),
            stop_signal: cri::Signal::Sigusr1.into(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    cpu_quota: -1,
                    oom_score_adj: -998,
                    cpuset_cpus: "0-1,3".into(),
                    hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
                    ..Default::default()
                }),
                security_context: Some(cri::LinuxContainerSecurityContext {
                    capabilities: Some(cri::Capability {
                        add_capabilities: vec!["CAP_net_admin".into()],
                        drop_capabilities: vec!["ALL".into()],
                        add_ambient_capabilities: vec![],
                    }),
                    run_as_user: Some(cri::Int64Value { value: 1000 }),
                    run_as_group: Some(cri::Int64Value { value: 0 }),
                    seccomp_profile_path: "localhost//etc/profile.json".into(),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        }),
        sandbox_config: None,
    }
}

/// The part of a message that names the field, and the one that shows the value.
fn expect_refusal<T: std::fmt::Debug>(result: Result<T>, field: &str, value: &str) {
    let error = result.expect_err(&format!("{field} = {value:?} was taken"));
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    let Error::Invalid { field: named, value: shown, .. } = &error else { panic!("{error}") };
    assert_eq!(named, field, "{error}");
    assert!(shown.contains(value), "{error} does not show {value:?}");
    assert!(error.to_string().contains(field), "{error}");
}

#[test]
fn a_good_sandbox_is_taken() {
    let spec = pod(&run_request()).unwrap();
    assert_eq!((spec.key.namespace.as_str(), spec.key.attempt), ("default", 2));
    assert_eq!(spec.cgroup_parent.as_deref(), Some("/kubepods/burstable/pod1"));
    assert_eq!(spec.namespaces.pid, Scope::Container);
    assert_eq!(spec.namespaces.network, Scope::Pod);
    assert_eq!(spec.sysctls.get("net.ipv4.conf.eth0/1.forwarding").unwrap(), "1");
    assert_eq!(spec.port_mappings[0].container_port, 53);
    assert_eq!(spec.annotations.get("a/b").unwrap(), "c\nd");
}

#[test]
fn a_sandbox_needs_little() {
    let mut request = run_request();
    let config = request.config.as_mut().unwrap();
    *config = cri::PodSandboxConfig { metadata: config.metadata.clone(), ..Default::default() };
    let PodSpec { log_directory, cgroup_parent, dns, namespaces, .. } = pod(&request).unwrap();
    assert_eq!((log_directory, cgroup_parent), (None, None));
    assert_eq!(dns, None);
    assert_eq!(namespaces.pid, Scope::Pod);
}

type SpoilPod = fn(&mut cri::PodSandboxConfig);

fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
    config.linux.as_mut().unwrap()
}

fn metadata(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
    config.metadata.as_mut().unwrap()
}

fn pod_context(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    linux(config).security_context.as_mut().unwrap()
}

/// A user namespace of the pod's: inside, host, length.
fn user_namespace(mappings: &[(u32, u32, u32)]) -> cri::UserNamespace {
    let mapping =
        |&(container_id, host_id, length): &_| cri::IdMapping { container_id, host_id, length };
    let all: Vec<cri::IdMapping> = mappings.iter().map(mapping).collect();
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: all.clone(), gids: all }
}

fn pod_namespaces(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    pod_context(config).namespace_options.as_mut().unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_sandboxes_are_refused() {
    let options = "config.linux.security_context.namespace_options";
    let cases: Vec<(String, &str, SpoilPod)> = vec![
        ("config.metadata".into(), "", |c| c.metadata = None),
        ("config.metadata.name".into(), "", |c| metadata(c).name = String::new()),
        ("config.metadata.name".into(), "a b", |c| metadata(c).name = "a b".into()),
        ("config.metadata.name".into(), "xxxx...", |c| metadata(c).name = "x".repeat(254)),
        ("config.metadata.uid".into(), "", |c| metadata(c).uid = String::new()),
        ("config.metadata.uid".into(), "u;K=v", |c| metadata(c).uid = "u;K=v".into()),
        ("config.metadata.namespace".into(), "", |c| metadata(c).namespace = String::new()),
        ("config.metadata.namespace".into(), "a\n", |c| metadata(c).namespace = "a\n".into()),
        ("config.hostname".into(), "a/b", |c| c.hostname = "a/b".into()),
        ("config.hostname".into(), "hhhh", |c| c.hostname = "h".repeat(65)),
        ("config.log_directory".into(), "var/log", |c| c.log_directory = "var/log".into()),
        ("config.log_directory".into(), "/a/../b", |c| c.log_directory = "/a/../b".into()),
        ("config.dns_config.servers[1]".into(), "dns.local", |c| {
            c.dns_config.as_mut().unwrap().servers[1] = "dns.local".into();
        }),
        ("config.dns_config.searches[0]".into(), "a\nb", |c| {
            c.dns_config.as_mut().unwrap().searches[0] = "a\nb".into();
        }),
        ("config.dns_config.options[0]".into(), "", |c| {
            c.dns_config.as_mut().unwrap().options[0] = String::new();
        }),
        ("config.port_mappings[0].protocol".into(), "3", |c| c.port_mappings[0].protocol = 3),
        ("config.port_mappings[0].container_port".into(), "0", |c| {
            c.port_mappings[0].container_port = 0;
        }),
        ("config.port_mappings[0].container_port".into(), "65536", |c| {
            c.port_mappings[0].container_port = 65536;
        }),
        ("config.port_mappings[0].host_port".into(), "-1", |c| c.port_mappings[0].host_port = -1),
        ("config.port_mappings[0].host_ip".into(), "1.2.3", |c| {
            c.port_mappings[0].host_ip = "1.2.3".into();
        }),
        ("config.labels".into(), "", |c| {
            c.labels.insert(String::new(), "x".into());
        }),
        ("config.annotations".into(), "bytes", |c| {
            c.annotations.insert("big".into(), "x".repeat(512 * 1024));
        }),
        ("config.annotations[\"kubernetes.io/egress-bandwidth\"]".into(), "much", |c| {
            c.annotations.insert("kubernetes.io/egress-bandwidth".into(), "much".into());
        }),
        ("config.annotations[\"k\"]".into(), "\0", |c| {
            c.annotations.insert("k".into(), "\0".into());
        }),
        ("config.linux.cgroup_parent".into(), "kubepods", |c| {
            linux(c).cgroup_parent = "kubepods".into();
        }),
        ("config.linux.cgroup_parent".into(), "/a/../b", |c| {
            linux(c).cgroup_parent = "/a/../b".into();
        }),
        ("config.linux.cgroup_parent".into(), "kubepods-pod1.slice", |c| {
            linux(c).cgroup_parent = "kubepods-pod1.slice".into();
        }),
        ("config.linux.cgroup_parent".into(), "/x.slice", |c| {
            linux(c).cgroup_parent = "/x.slice".into();
        }),
        ("config.linux.cgroup_parent".into(), "//", |c| linux(c).cgroup_parent = "//".into()),
        ("config.linux.sysctls".into(), "kernel", |c| {
            linux(c).sysctls.insert("kernel".into(), "1".into());
        }),
        ("config.linux.sysctls".into(), "net/../../x", |c| {
            linux(c).sysctls.insert("net/../../x".into(), "1".into());
        }),
        ("config.linux.sysctls".into(), "net..x", |c| {
            linux(c).sysctls.insert("net..x".into(), "1".into());
        }),
        ("config.linux.sysctls[\"net.a\"]".into(), "1\n2", |c| {
            linux(c).sysctls.insert("net.a".into(), "1\n2".into());
        }),
        (format!("{options}.network"), "CONTAINER", |c| {
            pod_namespaces(c).network = cri::NamespaceMode::Container.into();
        }),
        (format!("{options}.network"), "4", |c| pod_namespaces(c).network = 4),
        (format!("{options}.ipc"), "-1", |c| pod_namespaces(c).ipc = -1),
        (format!("{options}.pid"), "9", |c| pod_namespaces(c).pid = 9),
        (format!("{options}.pid"), "TARGET", |c| {
            pod_namespaces(c).pid = cri::NamespaceMode::Target.into();
        }),
        (format!("{options}.pid"), "TARGET abc", |c| {
            pod_namespaces(c).pid = cri::NamespaceMode::Target.into();
            pod_namespaces(c).target_id = "abc".into();
        }),
        (format!("{options}.userns_options.uids"), "0 mappings", |c| {
            pod_namespaces(c).userns_options = Some(cri::UserNamespace::default());
        }),
        (format!("{options}.userns_options.uids"), "2 mappings", |c| {
            pod_namespaces(c).userns_options = Some(user_namespace(&[(0, 1000, 5), (5, 2000, 5)]));
        }),
        (format!("{options}.userns_options.uids[0].container_id"), "1", |c| {
            pod_namespaces(c).userns_options = Some(user_namespace(&[(1, 1000, 10)]));
        }),
        (format!("{options}.userns_options.uids[0].length"), "0", |c| {
            pod_namespaces(c).userns_options = Some(user_namespace(&[(0, 1000, 0)]));
        }),
        (format!("{options}.userns_options.uids[0].length"), "4294967295", |c| {
            pod_namespaces(c).userns_options = Some(user_namespace(&[(0, 1000, u32::MAX)]));
        }),
        (format!("{options}.userns_options.gids"), "(set)", |c| {
            let mut asked = user_namespace(&[(0, 1000, 10)]);
            asked.gids[0].host_id = 2000;
            pod_namespaces(c).userns_options = Some(asked);
        }),
        (format!("{options}.userns_options.uids"), "(set)", |c| {
            let mut asked = user_namespace(&[(0, 1000, 10)]);
            asked.mode = cri::NamespaceMode::Node.into();
            pod_namespaces(c).userns_options = Some(asked);
        }),
        (format!("{options}.userns_options.mode"), "CONTAINER", |c| {
            pod_namespaces(c).userns_options = Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Container.into(),
                ..Default::default()
            });
        }),
        (format!("{options}.userns_options.mode"), "TARGET", |c| {
            pod_namespaces(c).userns_options = Some(cri::UserNamespace {
                mode: cri::NamespaceMode::Target.into(),
                ..Default::default()
            });
        }),
        ("config.linux.security_context.run_as_group".into(), "7", |c| {
            pod_context(c).run_as_group = Some(cri::Int64Value { value: 7 });
        }),
        ("config.linux.security_context.run_as_user".into(), "-1", |c| {
            pod_context(c).run_as_user = Some(cri::Int64Value { value: -1 });
        }),
        ("config.linux.security_context.supplemental_groups[0]".into(), "4294967295", |c| {
            pod_context(c).supplemental_groups = vec![u32::MAX.into()];
        }),
        ("config.linux.security_context.supplemental_groups_policy".into(), "2", |c| {
            pod_context(c).supplemental_groups_policy = 2;
        }),
        ("config.linux.security_context.seccomp.localhost_ref".into(), "", |c| {
            pod_context(c).seccomp =
                Some(cri::SecurityProfile { profile_type: 2, localhost_ref: String::new() });
        }),
        ("config.linux.resources.cpu_shares".into(), "-5", |c| {
            linux(c).resources =
                Some(cri::LinuxContainerResources { cpu_shares: -5, ..Default::default() });
        }),
        ("config.windows".into(), "", |c| {
            c.windows = Some(cri::WindowsPodSandboxConfig::default())
        }),
    ];
    for (field, value, spoil) in cases {
        let mut request = run_request();
        spoil(request.config.as_mut().unwrap());
        expect_refusal(pod(&request), &field, value);
    }
}

#[test]
fn a_request_without_configuration_or_with_a_handler_is_refused() {
    let empty = cri::RunPodSandboxRequest::default();
    expect_refusal(pod(&empty), "config", "");
    let kata = cri::RunPodSandboxRequest { runtime_handler: "kata".into(), ..run_request() };
    expect_refusal(pod(&kata), "runtime_handler", "kata");
    expect_refusal(container(&cri::CreateContainerRequest::default()), "config", "");
}

#[test]
fn a_good_container_is_taken() {
    let spec = container(&create_request()).unwrap();
    assert_eq!(spec.key.attempt, 1);
    assert_eq!(spec.stop_signal, Some(10));
    assert_eq!(spec.envs, [("A.b-c".to_owned(), "x=y".to_owned())]);
    assert_eq!(spec.capabilities.add, ["NET_ADMIN"]);
    assert_eq!(spec.mounts[0].propagation, Propagation::Bidirectional);
    assert_eq!(spec.security.seccomp, Some(Profile::Localhost("/etc/profile.json".into())));
    assert_eq!(spec.security.run_as.group, Some(0));
    assert_eq!(spec.masked_paths, Some(vec![]));
}

#[test]
fn without_a_security_context_the_usual_paths_are_masked() {
    let mut request = create_request();
    request.config.as_mut().unwrap().linux = None;
    let spec = container(&request).unwrap();
    assert_eq!((spec.masked_paths, spec.readonly_paths), (None, None));
}

type SpoilContainer = fn(&mut cri::ContainerConfig);

fn context(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn limits(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn bad_containers_are_refused() {
    let cases: Vec<(&str, &str, SpoilContainer)> = vec![
        ("config.metadata", "", |c| c.metadata = None),
        ("config.metadata.name", "", |c| c.metadata.as_mut().unwrap().name = String::new()),
        ("config.image", "", |c| c.image = None),
        ("config.image.image", "", |c| c.image.as_mut().unwrap().image = String::new()),
        ("config.image.image", "a b", |c| c.image.as_mut().unwrap().image = "a b".into()),
        ("config.command[0]", "\0", |c| c.command[0] = "\0".into()),
        ("config.args[1]", "a\0", |c| c.args[1] = "a\0".into()),
        ("config.working_dir", "work", |c| c.working_dir = "work".into()),
        ("config.envs[0].key", "", |c| c.envs[0].key = String::new()),
        ("config.envs[0].key", "A=B", |c| c.envs[0].key = "A=B".into()),
        ("config.envs[0].key", "A\0", |c| c.envs[0].key = "A\0".into()),
        ("config.envs[0].value", "A.b-c", |c| c.envs[0].value = b"\0".to_vec()),
        ("config.envs[0].value", "A.b-c", |c| c.envs[0].value = vec![0xff]),
        ("config.mounts[0].container_path", "", |c| c.mounts[0].container_path = String::new()),
        ("config.mounts[0].container_path", "data", |c| c.mounts[0].container_path = "data".into()),
        ("config.mounts[0].container_path", "/a/../b", |c| {
            c.mounts[0].container_path = "/a/../b".into();
        }),
        ("config.mounts[0].container_path", "/./", |c| c.mounts[0].container_path = "/./".into()),
        ("config.mounts[0].host_path", "", |c| c.mounts[0].host_path = String::new()),
        ("config.mounts[0].host_path", "srv", |c| c.mounts[0].host_path = "srv".into()),
        ("config.mounts[0].propagation", "3", |c| c.mounts[0].propagation = 3),
        ("config.mounts[0].recursive_read_only", "true", |c| {
            c.mounts[0].recursive_read_only = true;
            c.mounts[0].propagation = 0;
        }),
        ("config.mounts[0].recursive_read_only", "true", |c| {
            c.mounts[0].recursive_read_only = true;
            c.mounts[0].readonly = true;
        }),
        ("config.mounts[0].image_sub_path", "x", |c| c.mounts[0].image_sub_path = "x".into()),
        ("config.mounts[0].host_path", "/srv/data", |c| {
            c.mounts[0].image = Some(cri::ImageSpec { image: "i".into(), ..Default::default() });
        }),
        ("config.devices[0].container_path", "dev/x", |c| {
            c.devices[0].container_path = "dev/x".into();
        }),
        ("config.devices[0].host_path", "", |c| c.devices[0].host_path = String::new()),
        ("config.devices[0].permissions", "rx", |c| c.devices[0].permissions = "rx".into()),
        ("config.devices[0].permissions", "", |c| c.devices[0].permissions = String::new()),
        ("config.log_path", "/abs.log", |c| c.log_path = "/abs.log".into()),
        ("config.log_path", "../x.log", |c| c.log_path = "../x.log".into()),
        ("config.log_path", "dir/", |c| c.log_path = "dir/".into()),
        ("config.stop_signal", "66", |c| c.stop_signal = 66),
        ("config.labels", "", |c| {
            c.labels.insert(String::new(), String::new());
        }),
        ("config.windows", "", |c| c.windows = Some(cri::WindowsContainerConfig::default())),
        ("config.linux.resources.cpu_period", "-1", |c| limits(c).cpu_period = -1),
        ("config.linux.resources.cpu_quota", "-2", |c| limits(c).cpu_quota = -2),
        ("config.linux.resources.memory_limit_in_bytes", "-2", |c| {
            limits(c).memory_limit_in_bytes = -2;
        }),
        ("config.linux.resources.oom_score_adj", "1001", |c| limits(c).oom_score_adj = 1001),
        ("config.linux.resources.cpuset_cpus", "3-1", |c| limits(c).cpuset_cpus = "3-1".into()),
        ("config.linux.resources.cpuset_mems", "a", |c| limits(c).cpuset_mems = "a".into()),
        ("config.linux.resources.hugepage_limits[0].page_size", "2MiB", |c| {
            limits(c).hugepage_limits[0].page_size = "2MiB".into();
        }),
        ("config.linux.resources.hugepage_limits[0].page_size", "../MB", |c| {
            limits(c).hugepage_limits[0].page_size = "../MB".into();
        }),
        ("config.linux.resources.unified", "../memory.max", |c| {
            limits(c).unified.insert("../memory.max".into(), "1".into());
        }),
        ("config.linux.security_context.run_as_group", "7", |c| {
            context(c).run_as_user = None;
            context(c).run_as_group = Some(cri::Int64Value { value: 7 });
        }),
        ("config.linux.security_context.run_as_user", "4294967296", |c| {
            context(c).run_as_user = Some(cri::Int64Value { value: 1 << 32 });
        }),
        ("config.linux.security_context.run_as_username", "a b", |c| {
            context(c).run_as_username = "a b".into();
        }),
        ("config.linux.security_context.capabilities.add_capabilities[0]", "net-admin", |c| {
            context(c).capabilities.as_mut().unwrap().add_capabilities[0] = "net-admin".into();
        }),
        ("config.linux.security_context.masked_paths[0]", "proc", |c| {
            context(c).masked_paths = vec!["proc".into()];
        }),
        ("config.linux.security_context.readonly_paths[0]", "/a/../b", |c| {
            context(c).readonly_paths = vec!["/a/../b".into()];
        }),
        ("config.linux.security_context.apparmor_profile", "mine", |c| {
            context(c).apparmor_profile = "mine".into();
        }),
        ("config.linux.security_context.seccomp.profile_type", "5", |c| {
            context(c).seccomp =
                Some(cri::SecurityProfile { profile_type: 5, localhost_ref: String::new() });
        }),
        ("config.linux.security_context.selinux_options.level", "s0 x", |c| {
            context(c).selinux_options =
                Some(cri::SeLinuxOption { level: "s0 x".into(), ..Default::default() });
        }),
    ];
    for (field, value, spoil) in cases {
        let mut request = create_request();
        spoil(request.config.as_mut().unwrap());
        expect_refusal(container(&request), field, value);
    }
}

#[test]
fn a_message_never_repeats_the_value_of_an_environment_variable() {
    let mut request = create_request();
    let secret = cri::KeyValue { key: "TOKEN".into(), value: b"hunter2\0".to_vec() };
    request.config.as_mut().unwrap().envs.push(secret);
    let text = container(&request).unwrap_err().to_string();
    assert!(!text.contains("hunter2") && text.contains("TOKEN"), "{text}");
}

#[test]
fn ids_times_and_command_lines_are_checked() {
    expect_refusal(id("container_id", ""), "container_id", "");
    assert_eq!(id("container_id", "ab").unwrap(), "ab");
    expect_refusal(seconds("timeout", -1), "timeout", "-1");
    assert_eq!(seconds("timeout", 0).unwrap(), 0);
    assert_eq!(seconds("timeout", i64::MAX).unwrap(), 3_162_240_000);
    expect_refusal(argv("cmd", &[]), "cmd", "");
    expect_refusal(argv("cmd", &[String::new()]), "cmd", "");
    expect_refusal(argv("cmd", &["ls".into(), "a\0".into()]), "cmd[1]", "a");
}

#[test]
fn image_names_are_checked() {
    for bad in ["", "lib/UPPER", "a b", "name:", "x@sha256:short", "-x"] {
        expect_refusal(reference("image.image", bad), "image.image", bad);
        expect_refusal(image_name("image.image", bad), "image.image", bad);
    }
    let digits = "0123456789abcdef".repeat(4);
    for good in ["busybox", "localhost:5000/a/b:v1", &digits, &format!("sha256:{digits}"), "ab12"] {
        assert_eq!(image_name("image.image", good).unwrap(), good);
    }
}

#[test]
fn credentials_come_plain_or_in_base64() {
    let plain = cri::AuthConfig {
        username: "u".into(),
        password: "p".into(),
        identity_token: "i".into(),
        registry_token: "r".into(),
        ..Default::default()
    };
    let login = credentials(&plain).unwrap();
    assert_eq!((login.username.as_str(), login.password.as_str()), ("u", "p"));
    assert_eq!((login.identity_token.as_str(), login.registry_token.as_str()), ("i", "r"));
    // "user:pa:ss"
    let encoded = cri::AuthConfig { auth: "dXNlcjpwYTpzcw==".into(), ..plain };
    let login = credentials(&encoded).unwrap();
    assert_eq!((login.username.as_str(), login.password.as_str()), ("user", "pa:ss"));
    for bad in ["%%%", "bm9jb2xvbg==", "/w=="] {
        let auth = cri::AuthConfig { auth: bad.into(), ..Default::default() };
        expect_refusal(credentials(&auth), "auth.auth", "(hidden)");
    }
}
