//! Attach.

use super::*;

fn attach_request(id: &str) -> AttachRequest {
    AttachRequest { container_id: id.to_owned(), stdout: true, stderr: true, ..Default::default() }
}

#[tokio::test]
async fn the_first_client_of_stdin_once_ends_the_input() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("once").await?;
    for (over, name) in BOTH.into_iter().zip(["spdy", "websocket"]) {
        // By a tick a client knows that it is attached.
        let script = "while :; do echo tick; sleep 0.1; done & \
            while read line; do echo got $line; echo err $line >&2; done; echo eof; sleep 1000";
        let mut config = shell(name, script);
        (config.stdin, config.stdin_once) = (true, true);
        let id = node.run(&pod, config).await?;
        let request = AttachRequest { stdin: true, ..attach_request(&id) };
        let mut remote = open_attach(&node, over, request.clone()).await?;
        remote.send(STDIN, b"one\n")?;
        remote.until(STDOUT, "got one\n")?;
        remote.until(STDERR, "err one\n")?;
        // Another gets output only, since the input is taken.
        let mut second = open_attach(&node, over, request).await?;
        second.until(STDOUT, "tick\n")?;
        second.send(STDIN, b"ignored\n")?;
        remote.send(STDIN, b"two\n")?;
        second.until(STDOUT, "got two\n")?;
        remote.end(STDIN)?;
        remote.until(STDOUT, "eof\n")?;
        second.until(STDOUT, "eof\n")?;
        assert!(!second.text(STDOUT).contains("ignored"));
        drop((remote, second));
        node.stop_container(&id, 0).await?;
    }
    node.finish().await
}

#[tokio::test]
async fn input_that_stays_open_serves_one_client_after_another() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("many").await?;
    let mut config =
        shell("main", "while read line; do echo got $line; done; echo eof; sleep 1000");
    config.stdin = true;
    let log = config.log_path.clone();
    let id = node.run(&pod, config).await?;
    for (over, word) in BOTH.into_iter().zip(["one", "two"]) {
        let request = AttachRequest { stdin: true, ..attach_request(&id) };
        let mut remote = open_attach(&node, over, request).await?;
        remote.send(STDIN, format!("{word}\n").as_bytes())?;
        remote.until(STDOUT, &format!("got {word}\n"))?;
        remote.end(STDIN)?;
    }
    node.logged(&pod, &log, "got two").await?;
    assert!(node.log(&pod, &log)?.iter().all(|line| line.text != "eof"));
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn the_containers_end_ends_the_attach() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("end").await?;
    for (over, name) in BOTH.into_iter().zip(["spdy", "websocket"]) {
        let mut config = shell(name, "read x; echo last words; exit 7");
        (config.stdin, config.stdin_once) = (true, true);
        let id = node.run(&pod, config).await?;
        let request = AttachRequest { stdin: true, ..attach_request(&id) };
        let mut remote = open_attach(&node, over, request).await?;
        remote.send(STDIN, b"\n")?;
        remote.finish()?;
        assert_eq!(remote.text(STDOUT), "last words\n", "{over:?}");
        assert_eq!(remote.exit_code()?, 0, "an attach tells no code of its container");
        assert_eq!(node.exited(&id).await?.exit_code, 7);
    }
    node.finish().await
}

#[tokio::test]
async fn a_terminal_is_shared_sized_and_survives_its_clients() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("tty").await?;
    let mut config = shell("main", "while read x; do stty size; done");
    (config.stdin, config.tty) = (true, true);
    let id = node.run(&pod, config).await?;
    let request = AttachRequest { stdin: true, tty: true, stderr: false, ..attach_request(&id) };
    let mut first = open_attach(&node, Over::Spdy, request.clone()).await?;
    let mut second = open_attach(&node, Over::WebSocket, request).await?;
    first.send(RESIZE, b"{\"Width\":90,\"Height\":31}")?;
    true_within("the new size", SOON, async || {
        Ok(node.sh(&id, "stty size < /dev/console").await?.starts_with("31 90"))
    })
    .await?;
    second.send(STDIN, b"\n")?;
    first.until(STDOUT, "31 90")?;
    second.until(STDOUT, "31 90")?;
    drop((first, second));
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn a_slow_reader_is_dropped_and_holds_up_nobody() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("slow").await?;
    let script = "read x; yes 0123456789abcde | head -c 64000000; echo finished; sleep 1000";
    let mut config = shell("main", script);
    (config.stdin, config.stdin_once) = (true, true);
    let log = config.log_path.clone();
    let id = node.run(&pod, config).await?;
    // Neither takes anything; the container goes on all the same.
    let mut slow = open_attach(&node, Over::Spdy, attach_request(&id)).await?;
    let request = AttachRequest { stdin: true, ..attach_request(&id) };
    let mut other = open_attach(&node, Over::WebSocket, request).await?;
    other.send(STDIN, b"\n")?;
    node.logged(&pod, &log, "finished").await?;
    for remote in [&mut slow, &mut other] {
        remote.finish()?;
        assert!(remote.error().contains("too slowly"), "{}", remote.error());
    }
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn a_container_without_a_log_can_be_attached_to() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("nolog").await?;
    let mut config = shell("main", "read x; echo hello; sleep 1000");
    (config.stdin, config.log_path) = (true, String::new());
    let id = node.run(&pod, config).await?;
    let request = AttachRequest { stdin: true, ..attach_request(&id) };
    let mut remote = open_attach(&node, Over::Spdy, request).await?;
    remote.send(STDIN, b"\n")?;
    remote.until(STDOUT, "hello\n")?;
    drop(remote);
    node.finish().await
}
