//! ExecSync.

use std::time::Instant;

use berth_tests::prelude::*;

async fn busy(node: &Node) -> Result<(Pod, String)> {
    let pod = node.pod("exec").await?;
    let id = node.run(&pod, shell("main", "sleep 1000")).await?;
    Ok((pod, id))
}

#[tokio::test]
async fn streams_and_code_come_back() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let answer = node.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"]).await?;
    assert_eq!(answer.stdout, b"out\n");
    assert_eq!(answer.stderr, b"err\n");
    assert_eq!(answer.exit_code, 5);
    let answer = node.exec(&id, &["sh", "-c", "kill -9 $$"]).await?;
    assert_eq!(answer.exit_code, 137);
    assert_eq!(node.exec(&id, &["cat"]).await?.exit_code, 0, "stdin is empty");
    node.finish().await
}

#[tokio::test]
async fn large_output_comes_back_whole() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let answer = node.exec(&id, &["sh", "-c", "head -c 3000000 /dev/zero"]).await?;
    assert_eq!((answer.stdout.len(), answer.exit_code), (3_000_000, 0));
    node.finish().await
}

#[tokio::test]
async fn many_at_once() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let outputs = berth_tests::eventually::all((0..20).map(|index| {
        let (node, id) = (&node, &id);
        async move { node.sh(id, &format!("echo {index}")).await }
    }))
    .await?;
    for (index, output) in outputs.iter().enumerate() {
        assert_eq!(output, &format!("{index}\n"));
    }
    node.finish().await
}

#[tokio::test]
async fn a_timeout_takes_the_whole_tree() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let tree = "trap '' TERM HUP INT; setsid sh -c 'sleep 4713 & sleep 4713' & sleep 4713";
    let script = if node.is_berth() { tree } else { "trap '' TERM; sleep 4713" };
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 1,
    };
    let begin = Instant::now();
    let error = node.cri().exec_sync(request).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    if node.is_berth() {
        let seen = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
        let left = node.sh(&id, seen).await?;
        assert!(!left.lines().any(|line| line.starts_with("sleep 4713")), "{left}");
    }
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn the_callers_own_deadline_ends_the_command_too() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let mut request = tonic::Request::new(ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sleep", "4714"].map(str::to_owned).to_vec(),
        timeout: 0,
    });
    request.set_timeout(Duration::from_secs(1));
    node.cri().runtime().exec_sync(request).await.unwrap_err();
    true_within("the command's end", SOON, async || {
        let seen = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done";
        let left = node.sh(&id, seen).await?;
        Ok(!left.lines().any(|line| line.starts_with("sleep 4714")))
    })
    .await?;
    node.finish().await
}

#[tokio::test]
async fn a_command_that_is_not_there_is_an_error_or_a_code() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    // kubelet's probe needs a failure; which of the two is the runtime's choice.
    match node.exec(&id, &["/no/such/program"]).await {
        Ok(answer) => assert!([126, 127].contains(&answer.exit_code), "{answer:?}"),
        Err(error) => assert!(format!("{error:#}").contains("/no/such/program"), "{error:#}"),
    }
    node.finish().await
}

#[tokio::test]
async fn it_runs_as_the_container_does() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("as").await?;
    let mut config = shell("main", "sleep 1000");
    config.security().run_as_user = Some(Int64Value { value: 1000 });
    config.working_dir = "/home".into();
    config.envs.push(KeyValue { key: "COLOUR".into(), value: b"blue".to_vec() });
    let id = node.run(&pod, config).await?;
    assert_eq!(node.sh(&id, "id -u; pwd; echo $COLOUR").await?, "1000\n/home\nblue\n");
    let tasks = "cat /proc/1/cgroup | head -n 1; cat /proc/self/cgroup | head -n 1";
    let cgroups = node.sh(&id, tasks).await?;
    let lines: Vec<&str> = cgroups.lines().collect();
    assert_eq!(lines.len(), 2, "{cgroups}");
    node.finish().await
}

#[tokio::test]
async fn only_a_running_container_takes_it() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("ended").await?;
    let (_, _) = node.run_to_end(&pod, shell("main", "true")).await?;
    let id = node.containers().await?.first().context("the container")?.id.clone();
    assert!(node.exec(&id, &["true"]).await.is_err());
    node.finish().await
}

#[tokio::test]
async fn what_a_command_leaves_running_does_not_hold_the_answer() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    if node.is_berth() {
        let begin = Instant::now();
        let answer = node.exec(&id, &["sh", "-c", "sleep 30 & echo done"]).await?;
        assert_eq!(answer.stdout, b"done\n");
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
    node.finish().await
}
