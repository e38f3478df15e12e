//! What a container's process finds: environment, directory, user, rights, root.

use berth_tests::fixtures::busybox_layer;
use berth_tests::image::Image;
use berth_tests::prelude::*;
use serde_json::{Value, json};

fn push(node: &Node, name: &str, config: Value) -> Result<String> {
    let image = Image::new(vec![busybox_layer()?]).config(config);
    node.registry().push(name, "1", &image.build())?;
    Ok(format!("{name}:1"))
}

#[tokio::test]
async fn environment_comes_from_image_and_request() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("env").await?;
    let mut config = shell("main", "env");
    let env = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    config.envs = vec![env("MINE", "a=b c"), env("FROM_IMAGE", "replaced"), env("EMPTY", "")];
    let text = node.output(&pod, config).await?;
    let lines: Vec<&str> = text.lines().collect();
    for wanted in ["MINE=a=b c", "FROM_IMAGE=replaced", "EMPTY=", "PATH=/bin:/usr/bin"] {
        assert!(lines.contains(&wanted), "{wanted} not in {text}");
    }
    assert!(!lines.contains(&"FROM_IMAGE=yes"), "{text}");
    node.finish().await
}

#[tokio::test]
async fn command_and_args_replace_entrypoint_and_cmd() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("args").await?;
    let config =
        json!({"Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "Env": ["PATH=/bin"]});
    let image = push(&node, "entry", config)?;
    let cases: [(&[&str], &[&str], &str); 4] = [
        (&[], &[], "entry cmd\n"),
        (&[], &["arg"], "entry arg\n"),
        (&["/bin/echo", "own"], &[], "own\n"),
        (&["echo", "own"], &["arg"], "own arg\n"),
    ];
    for (index, (command, args, wanted)) in cases.into_iter().enumerate() {
        let mut config = container(&format!("c{index}"), &image, command);
        config.args = args.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(node.output(&pod, config).await?, wanted, "{command:?} {args:?}");
    }
    node.finish().await
}

#[tokio::test]
async fn the_working_directory_is_the_requests_or_the_images() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("cwd").await?;
    let image = push(&node, "workdir", json!({"WorkingDir": "/data", "Env": ["PATH=/bin"]}))?;
    for (index, (own, wanted)) in
        [("", "/data\n"), ("/home/app", "/home/app\n"), ("/made/here", "/made/here\n")]
            .into_iter()
            .enumerate()
    {
        let mut config = container(&format!("c{index}"), &image, &["/bin/pwd"]);
        config.working_dir = own.into();
        assert_eq!(node.output(&pod, config).await?, wanted, "{own:?}");
    }
    node.finish().await
}

/// How a user is asked for, and what `id` must say.
struct User {
    name: &'static str,
    image: &'static str,
    uid: Option<i64>,
    gid: Option<i64>,
    username: &'static str,
    groups: &'static [i64],
    strict: bool,
    wanted: (u32, u32, &'static [u32]),
}

const NOBODY: User = User {
    name: "",
    image: "",
    uid: None,
    gid: None,
    username: "",
    groups: &[],
    strict: false,
    wanted: (0, 0, &[]),
};

const USERS: &[User] = &[
    User { name: "root", ..NOBODY },
    User { name: "uid", uid: Some(1000), wanted: (1000, 1001, &[2000, 2001]), ..NOBODY },
    User { name: "unknown", uid: Some(4242), wanted: (4242, 0, &[]), ..NOBODY },
    User {
        name: "uid-gid",
        uid: Some(1000),
        gid: Some(7),
        wanted: (1000, 7, &[2000, 2001]),
        ..NOBODY
    },
    User { name: "username", username: "other", wanted: (1002, 1002, &[2001]), ..NOBODY },
    User {
        name: "groups",
        uid: Some(1000),
        groups: &[5000, 5001],
        wanted: (1000, 1001, &[2000, 2001, 5000, 5001]),
        ..NOBODY
    },
    User {
        name: "strict",
        uid: Some(1000),
        groups: &[5000],
        strict: true,
        wanted: (1000, 1001, &[5000]),
        ..NOBODY
    },
    User { name: "image-name", image: "app", wanted: (1000, 1001, &[2000, 2001]), ..NOBODY },
    User { name: "image-uid", image: "1002", wanted: (1002, 1002, &[2001]), ..NOBODY },
    User { name: "image-pair", image: "app:other", wanted: (1000, 1002, &[2000, 2001]), ..NOBODY },
    User {
        name: "over-image",
        image: "app",
        uid: Some(1002),
        wanted: (1002, 1002, &[2001]),
        ..NOBODY
    },
];

#[tokio::test]
async fn users_are_looked_up_in_the_image() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("users").await?;
    for user in USERS {
        let repository = format!("user-{}", user.name);
        let image = push(&node, &repository, json!({"User": user.image, "Env": ["PATH=/bin"]}))?;
        let script = "grep -E '^(Uid|Gid|Groups)' /proc/self/status";
        let mut config = container(user.name, &image, &["/bin/sh", "-c", script]);
        let security = config.security();
        security.run_as_user = user.uid.map(|value| Int64Value { value });
        security.run_as_group = user.gid.map(|value| Int64Value { value });
        security.run_as_username = user.username.into();
        security.supplemental_groups = user.groups.to_vec();
        if user.strict {
            security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        }
        let text = node.output(&pod, config).await.with_context(|| user.name.to_owned())?;
        let numbers = |index: usize| -> Vec<u32> {
            let line = text.lines().nth(index).unwrap_or_default();
            line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect()
        };
        let (uid, gid, groups) = user.wanted;
        assert_eq!(numbers(0), [uid; 4], "{}: {text}", user.name);
        assert_eq!(numbers(1), [gid; 4], "{}: {text}", user.name);
        // Whether the primary group is listed again is the runtime's choice.
        let mut found: Vec<u32> = numbers(2).into_iter().filter(|group| *group != gid).collect();
        found.sort_unstable();
        // Peers of an older level know no policy and look no groups up for an image's user.
        if node.is_berth() || !user.strict && user.image.is_empty() {
            assert_eq!(found, groups, "{}: {text}", user.name);
        }
    }
    node.finish().await
}

#[tokio::test]
async fn an_unknown_user_name_fails_with_its_name() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("nobody").await?;
    node.pull("busybox:1").await?;
    let mut config = shell("main", "true");
    config.security().run_as_username = "stranger".into();
    let request = node.create_request(&pod, config);
    let error = node.cri().create_container(request).await.unwrap_err();
    assert!(error.message().contains("stranger") || !node.is_berth(), "{error}");
    assert!(node.containers().await?.is_empty());
    node.finish().await
}

#[tokio::test]
async fn a_readonly_root_stays_unwritten_and_volumes_do_not() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("readonly").await?;
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume)?;
    let script = "touch /x /etc/x /bin/x 2>/dev/null && exit 1; touch /vol/x && touch /dev/shm/x";
    let mut config = shell("main", script);
    config.security().readonly_rootfs = true;
    config.mounts.push(bind(&volume, "/vol"));
    let (status, log) = node.run_to_end(&pod, config).await?;
    assert_eq!(status.exit_code, 0, "{log:?}");
    assert!(volume.join("x").exists());
    node.finish().await
}

#[tokio::test]
async fn a_writable_root_is_each_containers_own() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("writable").await?;
    let script = "test ! -e /data/x && echo mine > /data/x && rm /etc/group && cat /data/x";
    assert_eq!(node.output(&pod, shell("one", script)).await?, "mine\n");
    assert_eq!(node.output(&pod, shell("two", script)).await?, "mine\n");
    node.finish().await
}

#[tokio::test]
async fn capabilities_follow_the_request() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("caps").await?;
    let effective = "sed -n 's/^CapEff:\\t//p; s/^NoNewPrivs:\\t//p' /proc/self/status";
    let caps = |add: &[&str], drop: &[&str]| Capability {
        add_capabilities: add.iter().map(|name| (*name).to_owned()).collect(),
        drop_capabilities: drop.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let mut config = shell("default", effective);
    assert_eq!(node.output(&pod, config).await?, "00000000a80425fb\n0\n");
    config = shell("none", effective);
    config.security().capabilities = Some(caps(&[], &["ALL"]));
    config.security().no_new_privs = true;
    assert_eq!(node.output(&pod, config).await?, "0000000000000000\n1\n");
    config = shell("one", effective);
    config.security().capabilities = Some(caps(&["NET_ADMIN"], &["ALL"]));
    assert_eq!(node.output(&pod, config).await?, "0000000000001000\n0\n");
    node.finish().await
}

#[tokio::test]
async fn proc_sys_and_dev_are_a_containers() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("dev").await?;
    let script = "ls /dev | sort | tr '\\n' ' '; echo; echo x > /dev/null; head -c 4 /dev/zero | wc -c; \
                  touch /sys/x 2>/dev/null && echo writable; test -e /proc/1/status && echo proc; \
                  readlink /dev/fd; ps | wc -l | grep -q '^[1-9]$' && echo alone";
    let text = node.output(&pod, shell("main", script)).await?;
    let names = text.lines().next().context("a first line")?;
    for name in [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ] {
        assert!(names.split(' ').any(|found| found == name), "{name} not in {names}");
    }
    let rest: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(rest, ["4", "proc", "/proc/self/fd", "alone"]);
    node.finish().await
}

#[tokio::test]
async fn masked_and_readonly_paths_of_the_request_hold() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("masked").await?;
    let script = "wc -c < /proc/keys; echo 1 > /proc/sys/kernel/sysrq 2>/dev/null && echo written; \
                  ls /sys/firmware | wc -l";
    let mut config = shell("main", script);
    let paths = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    config.security().masked_paths = paths(&["/proc/keys", "/sys/firmware", "/proc/absent"]);
    config.security().readonly_paths = paths(&["/proc/sys"]);
    assert_eq!(node.output(&pod, config).await?, "0\n0\n");
    node.finish().await
}

#[tokio::test]
async fn a_device_of_the_request_is_there() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("device").await?;
    let mut config = shell("main", "stat -c %t:%T /dev/mine && head -c 2 /dev/mine | wc -c");
    config.devices.push(Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/mine".into(),
        permissions: "r".into(),
    });
    assert_eq!(node.output(&pod, config).await?, "1:5\n2\n");
    node.finish().await
}

#[tokio::test]
async fn stdin_without_a_wish_is_empty() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("stdin").await?;
    assert_eq!(node.output(&pod, shell("main", "cat; echo end")).await?, "end\n");
    node.finish().await
}
