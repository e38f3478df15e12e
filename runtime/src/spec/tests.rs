use super::*;
use crate::pod::spec::{IdMaps, IdRange, Mount, Propagation};
use crate::pod::tests::{container_spec, pod_spec};

struct Case {
    pod: PodSpec,
    container: ContainerSpec,
    image: ImageConfig,
    paths: HostPaths,
    host: Host,
}

fn case() -> Case {
    Case {
        pod: pod_spec(),
        container: container_spec(),
        image: ImageConfig {
            env: vec!["PATH=/bin".into(), "A=image".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["cmd".into()],
            working_dir: "app".into(),
            ..ImageConfig::default()
        },
        paths: HostPaths::default(),
        host: Host { capabilities: capabilities::NAMES.to_vec(), ..Host::default() },
    }
}

fn made(case: &Case) -> Spec {
    let input = Input {
        pod: &case.pod,
        container: &case.container,
        image: &case.image,
        names: &Names::default(),
        paths: &case.paths,
        host: &case.host,
        pod_dir: Path::new("/state/pod"),
        hostname: "web".into(),
        cgroup: "/kubepods/pod1/abc".into(),
    };
    build(&input).unwrap().0
}

fn process(case: &Case) -> oci_spec::runtime::Process {
    made(case).process().clone().unwrap()
}

#[test]
fn command_and_arguments_replace_the_images() {
    let cases: [(&[&str], &[&str], &[&str]); 4] = [
        (&[], &[], &["/entry", "cmd"]),
        (&[], &["a"], &["/entry", "a"]),
        (&["/c"], &[], &["/c"]),
        (&["/c"], &["a"], &["/c", "a"]),
    ];
    for (command, args, expected) in cases {
        let mut case = case();
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        case.container.command = own(command);
        case.container.args = own(args);
        assert_eq!(process(&case).args().clone().unwrap(), own(expected));
    }
}

#[test]
fn a_container_without_a_program_is_refused() {
    let mut case = case();
    case.container.command.clear();
    case.container.args.clear();
    case.image = ImageConfig::default();
    let host = Host::default();
    let input = Input {
        pod: &case.pod,
        container: &case.container,
        image: &case.image,
        names: &Names::default(),
        paths: &case.paths,
        host: &host,
        pod_dir: Path::new("/state/pod"),
        hostname: String::new(),
        cgroup: "/x/abc".into(),
    };
    assert!(matches!(build(&input), Err(Error::Invalid { field, .. }) if field == "command"));
}

#[test]
fn later_variables_win_in_place() {
    let mut case = case();
    case.container.envs = vec![("A".into(), "request".into()), ("B".into(), "1=2".into())];
    case.container.tty = true;
    let env = process(&case).env().clone().unwrap();
    assert_eq!(env, ["PATH=/bin", "HOSTNAME=web", "HOME=/", "TERM=xterm", "A=request", "B=1=2"]);
    assert_eq!(process(&case).cwd(), Path::new("/app"));
}

fn destinations(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().clone().unwrap();
    mounts.iter().map(|m| m.destination().display().to_string()).collect()
}

fn volume(to: &str, readonly: bool, propagation: Propagation) -> Mount {
    Mount {
        container_path: to.into(),
        host_path: "/host".into(),
        readonly,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation,
        image: None,
        id_mapped: false,
        ids: IdMaps::default(),
    }
}

#[test]
fn containers_join_the_pods_user_namespace_and_map_their_volumes() {
    let mut case = case();
    let ranges = vec![IdRange { container: 0, host: 100_000, length: 65_536 }];
    let ids = IdMaps { uids: ranges.clone(), gids: ranges };
    case.pod.namespaces.user = true;
    case.pod.namespaces.ids = ids.clone();
    let mapped = Mount { id_mapped: true, ids, ..volume("/data", false, Propagation::Private) };
    case.container.mounts = vec![mapped, volume("/plain", false, Propagation::Private)];
    case.container.capabilities.add = vec!["ALL".into()];
    case.paths.mounts = vec!["/a".into(), "/b".into()];
    case.host.capabilities = vec!["CHOWN"];
    let spec = made(&case);
    let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
    let user = namespaces.iter().find(|n| n.typ() == LinuxNamespaceType::User).unwrap();
    assert_eq!(user.path().as_deref(), Some(Path::new("pod:")));
    let bounding = process(&case).capabilities().clone().unwrap().bounding().clone().unwrap();
    assert_eq!(bounding.len(), capabilities::NAMES.len(), "all there are, not the host's one");
    let mounts = spec.mounts().clone().unwrap();
    let at = |to: &str| mounts.iter().find(|m| m.destination() == Path::new(to)).unwrap();
    let line = at("/data").uid_mappings().clone().unwrap()[0];
    assert_eq!((line.container_id(), line.host_id(), line.size()), (0, 100_000, 65_536));
    assert!(at("/data").options().iter().flatten().any(|option| option == "ridmap"));
    assert!(at("/plain").uid_mappings().is_none());
}

#[test]
fn mounts_of_the_request_take_the_place_of_ours() {
    let mut case = case();
    case.container.mounts = vec![
        volume("/data/deep/er", true, Propagation::Bidirectional),
        volume("/etc/hosts", false, Propagation::Private),
        volume("/data", false, Propagation::HostToContainer),
        volume("/dev", false, Propagation::Private),
    ];
    case.paths.mounts = vec!["/a".into(), "/b".into(), "/c".into(), "/d".into()];
    let spec = made(&case);
    assert_eq!(
        destinations(&spec),
        [
            "/proc",
            "/sys",
            "/sys/fs/cgroup",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/data",
            "/dev",
            "/etc/hosts",
            "/data/deep/er"
        ]
    );
    let deep = spec.mounts().clone().unwrap().pop().unwrap();
    assert_eq!(deep.source().clone().unwrap(), Path::new("/a"));
    assert_eq!(deep.options().clone().unwrap(), ["rbind", "rshared", "ro"]);
}

#[test]
fn a_namespace_is_the_pods_the_containers_or_the_hosts() {
    let kinds = |case: &Case| -> Vec<(LinuxNamespaceType, bool)> {
        let linux = made(case).linux().clone().unwrap();
        let all = linux.namespaces().clone().unwrap();
        all.iter().map(|n| (n.typ(), n.path().is_some())).collect()
    };
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Uts};
    let mut case = case();
    let usual =
        [(Mount, false), (Network, true), (Uts, true), (Ipc, true), (Pid, false), (Cgroup, false)];
    assert_eq!(kinds(&case), usual);
    case.container.namespaces.pid = Scope::Pod;
    assert!(kinds(&case).contains(&(Pid, true)));
    case.pod.namespaces.network = Scope::Node;
    case.pod.namespaces.ipc = Scope::Node;
    case.container.namespaces.pid = Scope::Node;
    case.container.privileged = true;
    assert_eq!(kinds(&case), [(Mount, false)]);
}

#[test]
fn nothing_is_hidden_from_a_privileged_container() {
    let mut case = case();
    let hidden = |case: &Case| made(case).linux().clone().unwrap().masked_paths().clone().unwrap();
    assert_eq!(hidden(&case).len(), MASKED.len());
    case.container.masked_paths = Some(vec!["/proc/x".into()]);
    assert_eq!(hidden(&case), ["/proc/x"]);
    case.container.privileged = true;
    assert!(hidden(&case).is_empty());
    let linux = made(&case).linux().clone().unwrap();
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert_eq!(rules.len(), 1);
    assert!(rules[0].allow());
}

#[test]
fn limits_not_given_are_not_set() {
    let mut case = case();
    let resources = |case: &Case| made(case).linux().clone().unwrap().resources().clone().unwrap();
    assert!(resources(&case).memory().is_none());
    assert!(resources(&case).cpu().is_none());
    case.container.resources.memory_limit = 1 << 20;
    case.container.resources.cpu_quota = -1;
    let made = resources(&case);
    assert_eq!(made.memory().unwrap().limit(), Some(1 << 20));
    assert_eq!(made.memory().unwrap().swap(), None);
    assert_eq!(made.cpu().clone().unwrap().quota(), Some(-1));
}
