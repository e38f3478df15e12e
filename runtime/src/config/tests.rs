use super::*;

fn parse_text(text: &str) -> Result<Config, Error> {
    parse(Path::new("/etc/test.toml"), text)
}

/// The error as `berthd` prints it.
fn report(error: Error) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn default() -> Config {
    parse_text("").unwrap()
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    assert_eq!(parse_text(DEFAULT_TEXT).unwrap(), default());
}

#[test]
fn the_printed_defaults_name_every_key() {
    let value = serde_json::to_value(default()).unwrap();
    for (section, keys) in value.as_object().unwrap() {
        assert!(DEFAULT_TEXT.contains(section), "{section}");
        for (key, value) in keys.as_object().into_iter().flatten() {
            let table = value.is_object() && DEFAULT_TEXT.contains(&format!("[{section}.{key}]"));
            assert!(table || DEFAULT_TEXT.contains(&format!("{key} = ")), "{section}.{key}");
        }
    }
}

#[test]
fn the_deployed_file_is_the_default() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config.toml");
    assert_eq!(load(Some(&file)).unwrap(), default());
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = default();
    assert_eq!(config.root, Path::new("/var/lib/berth"));
    assert_eq!(config.state, Path::new("/run/berth"));
    assert_eq!(config.cri.socket, Path::new("/run/berth/berth.sock"));
    assert_eq!(config.cgroup.driver, CgroupDriver::Cgroupfs);
    assert_eq!(config.network.conf_dir, Path::new("/etc/cni/net.d"));
    assert_eq!(config.network.bin_dirs, [Path::new("/opt/cni/bin"), Path::new("/usr/lib/cni")]);
    assert_eq!(config.registry.config_path, Path::new("/etc/berth/certs.d"));
    assert_eq!((config.image.root, config.image.preload), (None, None));
    assert_eq!((config.image.rw_quota_mib, config.image.rw_quota_inodes), (None, None));
    assert_eq!(config.shim.cgroup, "/berth-shims");
    assert_eq!(config.stream.address.to_string(), "127.0.0.1:0");
    assert_eq!((config.stream.tls, config.stream.idle_timeout_seconds), (None, 14400));
}

#[test]
fn bad_files_are_refused_with_the_key_and_the_place() {
    let cases: &[(&str, &[&str])] = &[
        ("rooot = \"/x\"", &["/etc/test.toml", "line 1", "rooot"]),
        ("root = \"/x\"\n\n[cri]\nsokcet = \"/x\"", &["line 4", "sokcet"]),
        ("[crii]\n", &["line 1", "crii"]),
        ("root = 7", &["line 1", "root = 7"]),
        ("root = ", &["line 1"]),
        ("root = \"relative\"", &["root", "relative", "absolute"]),
        ("root = \"\"", &["root", "absolute"]),
        ("root = \"/\"", &["root", "/"]),
        ("root = \"/a/../b\"", &["root", "/a/../b"]),
        ("root = \"/same\"\nstate = \"/same/\"", &["root and state", "/same"]),
        ("state = \"./x\"", &["state", "./x"]),
        ("[cri]\nsocket = \"berth.sock\"", &["cri.socket", "berth.sock"]),
        ("[cgroup]\ndriver = \"systemd\"", &["cgroup.driver", "systemd", "cgroupfs"]),
        ("[cgroup]\ndriver = \"\"", &["cgroup.driver"]),
        ("[cgroup]\ndefault_parent = \"berth\"", &["cgroup.default_parent", "berth"]),
        ("[cgroup]\ndefault_parent = \"/\"", &["cgroup.default_parent"]),
        ("[cgroup]\ndefault_parent = \"/a/../..\"", &["cgroup.default_parent"]),
        ("[shim]\ncgroup = \"x\"", &["shim.cgroup", "x"]),
        ("[shim]\nbinary = \"shim\"", &["shim.binary", "shim"]),
        ("[registry]\nconfig_path = \"certs.d\"", &["registry.config_path", "certs.d"]),
        ("[image]\npreload = \"images\"", &["image.preload", "images"]),
        ("[image]\nroot = \"images\"", &["image.root", "images"]),
        ("[image]\nroot = \"/\"", &["image.root", "/"]),
        ("[image]\npull_cgroup = \"/a/../b\"", &["image.pull_cgroup", "/a/../b"]),
        ("[registry]\nstall_timeout_seconds = 0", &["registry.stall_timeout_seconds", "0"]),
        ("[registry]\nconnections_per_host = 0", &["registry.connections_per_host", "0"]),
        ("[registry]\nauth_file = \"x\"", &["registry.auth_file", "x"]),
        ("[registry]\nretries = -1", &["line 2", "retries"]),
        ("[log]\nlevel = \"loud=very\"", &["log.level", "loud=very"]),
        ("[log]\nlevel = \"\"", &["log.level"]),
        ("[metrics]\naddress = \":9464\"", &["metrics.address", ":9464"]),
        ("[metrics]\naddress = \"localhost:9464\"", &["metrics.address", "localhost"]),
        ("[stream]\naddress = \"localhost:0\"", &["stream.address", "localhost:0"]),
        ("[stream]\naddress = \"0.0.0.0:1\"", &["stream.address", "0.0.0.0:1"]),
        ("[stream]\naddress = \"[::]:1\"", &["stream.address", "[::]:1"]),
        ("[stream]\ntls_cert = \"/a\"", &["stream.tls_key", "/a"]),
        ("[stream]\ntls_key = \"/a\"", &["stream.tls_cert", "/a"]),
        ("[stream]\ntls_key = \"a\"\ntls_cert = \"/c\"", &["stream.tls_key", "\"a\""]),
        ("[stream]\nidle_timeout_seconds = 0", &["stream.idle_timeout_seconds", "0"]),
        ("[stream]\nidle_timeout_seconds = 604801", &["stream.idle_timeout_seconds", "604801"]),
        ("[stream]\nidle_timeout = 5", &["idle_timeout"]),
    ];
    check_refusals(cases);
}

#[test]
fn bad_limits_and_policies_of_images_are_refused() {
    check_refusals(&[
        ("[image]\nrw_quota_mib = 0", &["image.rw_quota_mib", "0", "from 1"]),
        ("[image]\nrw_quota_mib = 1073741825", &["image.rw_quota_mib", "1073741825"]),
        ("[image]\nrw_quota_inodes = 15", &["image.rw_quota_inodes", "15", "from 16"]),
        ("[image.limits]\nlayer_gib = 0", &["image.limits.layer_gib", "0"]),
        ("[image.limits]\nexpansion = -1", &["line 2", "expansion"]),
        ("[image.policy]\naction = \"maybe\"", &["image.policy.action", "maybe"]),
        ("[image.policy]\naction = \"require\"", &["image.policy.keys", "at least one key"]),
        ("[image.policy]\nkeys = [\"/k\"]", &["image.policy.keys", "only action"]),
        ("[image.policy]\nmatch_repository = true", &["match_repository", "only action"]),
        ("[image.policy]\naction = \"require\"\nkeys = [\"k\"]", &["keys", "\"k\"", "absolute"]),
        ("[[image.policy.rule]]\naction = \"deny\"", &["image.policy.rule[0].prefix", "\"\""]),
        ("[[image.policy.rule]]\nprefix = \"a.b\"", &["image.policy.rule[0].action", "\"\""]),
        (
            "[[image.policy.rule]]\nprefix = \"library\"\naction = \"deny\"",
            &["image.policy.rule[0].prefix", "library", "docker.io/library"],
        ),
        (
            "[[image.policy.rule]]\nprefix = \"a.b\"\naction = \"deny\"\n\
             [[image.policy.rule]]\nprefix = \"A.b\"\naction = \"allow\"",
            &["image.policy.rule[1].prefix", "another rule"],
        ),
    ]);
}

#[test]
fn bad_networks_are_refused() {
    check_refusals(&[
        ("[network]\nbin_dirs = []", &["network.bin_dirs"]),
        ("[network]\nbuiltin = \"ipvlan\"", &["network.builtin", "ipvlan"]),
        ("[network]\nbridge_name = \"a/b\"", &["network.bridge_name", "a/b"]),
        ("[network]\nbridge_name = \"longer-than-fifteen\"", &["network.bridge_name", "15 bytes"]),
        ("[network]\nbridge_subnets = [\"10.0.0.1/8\"]", &["network.bridge_subnets", "10.0.0.1/8"]),
        ("[network]\nbridge_subnets = []", &["network.bridge_subnets"]),
        (
            "[network]\nbridge_subnets = [\"10.0.0.0/8\", \"11.0.0.0/8\"]",
            &["network.bridge_subnets", "11.0.0.0/8"],
        ),
        ("[network]\ngc_minutes = -1", &["line 2", "gc_minutes"]),
        ("[network]\nbin_dirs = [\"/ok\", \"no\"]", &["network.bin_dirs", "no"]),
        ("[network]\nconf_dir = \"net.d\"", &["network.conf_dir", "net.d"]),
    ]);
}

fn check_refusals(cases: &[(&str, &[&str])]) {
    for (text, parts) in cases {
        let error = report(parse_text(text).unwrap_err());
        for part in *parts {
            assert!(error.contains(part), "{text:?} gave {error:?}, which lacks {part:?}");
        }
    }
}

#[test]
fn a_socket_may_lie_deep_but_its_name_must_be_short() {
    let deep = format!("[cri]\nsocket = \"/{}/b.sock\"", "d/".repeat(100));
    assert!(parse_text(&deep).is_ok());
    let long = format!("[cri]\nsocket = \"/run/{}\"", "n".repeat(81));
    assert!(report(parse_text(&long).unwrap_err()).contains("cri.socket"));
}

#[test]
fn paths_are_normalised() {
    let config = parse_text(
        "root = \"/a//b/\"\n[cgroup]\ndefault_parent = \"//x//y/\"\n[shim]\ncgroup = \"/s/\"",
    )
    .unwrap();
    assert_eq!(config.root.as_os_str(), "/a/b");
    assert_eq!(config.cgroup.default_parent, "/x/y");
    assert_eq!(config.shim.cgroup, "/s");
}

#[test]
fn the_rules_of_the_example_are_understood() {
    let lines =
        DEFAULT_TEXT.lines().skip_while(|line| !line.starts_with("# [[image.policy.rule]]"));
    let lines = lines.map_while(|line| line.strip_prefix("# "));
    let config = parse_text(&lines.collect::<Vec<_>>().join("\n")).unwrap();
    let keys = vec![PathBuf::from("/etc/berth/keys/prod.pub")];
    let action = PolicyAction::Require { keys, match_repository: false };
    let rule = PolicyRule { prefix: "registry.example.com/prod".to_owned(), action };
    assert_eq!(config.image.policy, ImagePolicy { default: PolicyAction::Allow, rule: vec![rule] });
}

#[test]
fn a_file_that_is_named_must_exist() {
    let error = load(Some(Path::new("/nonexistent/berth.toml"))).unwrap_err();
    assert!(matches!(error, Error::Read { .. }));
    assert!(error.to_string().contains("/nonexistent/berth.toml"));
}
