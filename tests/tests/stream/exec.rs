//! Exec.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn streams_and_codes_come_back() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let remote = run(&node, over, &id, "echo out; echo err >&2; exit 5").await?;
        assert_eq!((remote.text(STDOUT), remote.text(STDERR)), ("out\n".into(), "err\n".into()));
        assert_eq!(remote.exit_code()?, 5, "{over:?}");
        assert_eq!(run(&node, over, &id, "exit 0").await?.exit_code()?, 0, "{over:?}");
        assert_eq!(run(&node, over, &id, "kill -9 $$").await?.exit_code()?, 137, "{over:?}");
    }
    node.finish().await
}

#[tokio::test]
async fn input_reaches_the_command_and_ends_by_half() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let request = ExecRequest { stdin: true, ..exec_request(&id, "cat; echo that was all") };
        let mut remote = open_exec(&node, over, request).await?;
        remote.send(STDIN, b"one\n")?;
        remote.until(STDOUT, "one\n")?;
        let long = "x".repeat(300_000);
        remote.send(STDIN, long.as_bytes())?;
        remote.end(STDIN)?;
        remote.finish()?;
        assert_eq!(remote.text(STDOUT), format!("one\n{long}that was all\n"), "{over:?}");
        assert_eq!(remote.exit_code()?, 0);
    }
    node.finish().await
}

#[tokio::test]
async fn a_terminal_has_the_clients_size() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let script = "tty; echo $TERM; read x; stty size; read x; stty size; echo err >&2; exit 3";
        let request =
            ExecRequest { stdin: true, tty: true, stderr: false, ..exec_request(&id, script) };
        let mut remote = open_exec(&node, over, request).await?;
        remote.until(STDOUT, "xterm")?;
        for (columns, rows) in [(100, 30), (80, 24)] {
            remote.send(RESIZE, format!("{{\"Width\":{columns},\"Height\":{rows}}}").as_bytes())?;
            // Two channels are not ordered: the size is there when the terminal shows it.
            let seen = format!(
                "for t in /dev/pts/[0-9]*; do stty size < $t; done | grep '^{rows} {columns}$'"
            );
            true_within("the new size", SOON, async || Ok(node.sh(&id, &seen).await.is_ok()))
                .await?;
            remote.send(STDIN, b"\n")?;
            remote.until(STDOUT, &format!("{rows} {columns}"))?;
        }
        remote.finish()?;
        assert!(remote.text(STDOUT).contains("/dev/pts/"), "{}", remote.text(STDOUT));
        assert!(remote.text(STDOUT).contains("err"), "a terminal has one output");
        assert_eq!(remote.exit_code()?, 3, "{over:?}");
    }
    node.finish().await
}

#[tokio::test]
async fn output_of_any_size_comes_whole_and_takes_no_memory() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        run(&node, over, &id, "true").await?;
        let before = daemon_memory(&node, "VmRSS")?;
        let script = "yes 0123456789abcde | head -c 100000000; echo end >&2";
        let mut remote = open_exec(&node, over, exec_request(&id, script)).await?;
        // The client takes nothing for a while; the command has to wait, the daemon too.
        remote.until(STDOUT, "0123")?;
        true_within("the command's wait", SOON, async || {
            let state = "for p in /proc/[0-9]*; do grep -q '^head$' $p/comm 2>/dev/null && \
                         cut -d' ' -f3 $p/stat; done; true";
            Ok(node.sh(&id, state).await?.contains('S'))
        })
        .await?;
        let grown = daemon_memory(&node, "VmRSS")?.saturating_sub(before);
        assert!(grown < 24 << 10, "{over:?}: {grown} KiB for a slow client");
        remote.finish()?;
        let bytes = &remote.got[usize::from(STDOUT)];
        assert_eq!(bytes.len(), 100_000_000, "{over:?}");
        assert!(bytes.chunks(16).all(|line| line == b"0123456789abcde\n"));
        assert_eq!((remote.text(STDERR).as_str(), remote.exit_code()?), ("end\n", 0));
        let grown = daemon_memory(&node, "VmRSS")?.saturating_sub(before);
        assert!(grown < 24 << 10, "{over:?}: {grown} KiB afterwards");
    }
    node.finish().await
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_command_with_it() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let tree = "trap '' TERM HUP INT; setsid sleep 4715 & echo began; sleep 4715";
        let mut remote = open_exec(&node, over, exec_request(&id, tree)).await?;
        remote.until(STDOUT, "began")?;
        drop(remote);
        gone(&node, &id, "sleep 4715").await?;
        // Also one whose input is full, so that nothing is read from the client.
        let request = ExecRequest { stdin: true, ..exec_request(&id, "echo began; sleep 4716") };
        let mut remote = open_exec(&node, over, request).await?;
        remote.until(STDOUT, "began")?;
        for _ in 0..40 {
            remote.send(STDIN, &vec![0; 32 << 10])?;
        }
        drop(remote);
        gone(&node, &id, "sleep 4716").await?;
    }
    assert_eq!(node.container(&id).await?.state(), ContainerState::ContainerRunning);
    node.finish().await
}

#[tokio::test]
async fn children_that_keep_the_output_open_hold_up_nobody() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let begin = Instant::now();
        let remote = run(&node, over, &id, "sleep 4717 & echo done; exit 6").await?;
        assert_eq!((remote.text(STDOUT).as_str(), remote.exit_code()?), ("done\n", 6));
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    node.finish().await
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_an_error_with_its_name() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    for over in BOTH {
        let mut request = exec_request(&id, "");
        request.cmd = vec!["/no/such/program".to_owned()];
        let mut remote = open_exec(&node, over, request).await?;
        remote.finish()?;
        assert!(remote.error().contains("InternalError"), "{}", remote.error());
        assert!(remote.error().contains("/no/such/program"), "{}", remote.error());
    }
    node.finish().await
}

#[tokio::test]
async fn older_versions_are_spoken() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let script = "echo out; exit 5";
    let text = "command terminated with non-zero exit code: exit status 5";
    for version in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"] {
        let url = exec_url(&node, exec_request(&id, script)).await?;
        let mut remote = Remote::spdy(&node, &url, version, &[STDOUT, STDERR])?;
        remote.finish()?;
        assert_eq!((remote.text(STDOUT).as_str(), remote.error().as_str()), ("out\n", text));
        assert!(remote.has_ended(STDOUT) && remote.has_ended(ERROR), "{version}");
    }
    let url = exec_url(&node, exec_request(&id, script)).await?;
    let mut remote = Remote::websocket(&node, &url, "channel.k8s.io")?;
    remote.finish()?;
    assert_eq!((remote.text(STDOUT).as_str(), remote.error().as_str()), ("out\n", text));
    for (version, status) in [("base64.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)]
    {
        let request = ExecRequest { stdin: true, ..exec_request(&id, "read x; echo $x; exit 5") };
        let url = exec_url(&node, request).await?;
        let (address, path) = berth_tests::stream::split_url(&url)?;
        let socket = node.host().connect(address)?;
        let mut socket =
            berth_tests::stream::websocket::WebSocket::open(socket, path, Some(version))?;
        // "0", then base64 of "hello\n".
        socket.send_text("0aGVsbG8K")?;
        let mut all = Vec::new();
        while let Some(message) = socket.next()? {
            all.push(String::from_utf8(message)?);
        }
        assert!(all.contains(&"1aGVsbG8K".to_owned()), "{all:?}");
        let said = all.iter().find(|one| one.starts_with('3')).context("an error")?;
        // Base64 of "{", and of "com".
        assert!(said.starts_with(if status { "3ey" } else { "3Y29t" }), "{said}");
    }
    node.finish().await
}

#[tokio::test]
async fn a_busy_stream_slows_no_other_call() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let request = exec_request(&id, "cat /dev/zero");
    let mut remote = open_exec(&node, Over::Spdy, request).await?;
    let reader = std::thread::spawn(move || {
        let mut steps = 0_u64;
        while steps < 2000 && remote.step().is_ok_and(|more| more) {
            remote.got = Default::default();
            steps += 1;
        }
        steps
    });
    let mut slowest = Duration::ZERO;
    while !reader.is_finished() {
        let begin = Instant::now();
        node.container(&id).await?;
        slowest = slowest.max(begin.elapsed());
        tokio::task::yield_now().await;
    }
    assert!(reader.join().is_ok_and(|steps| steps == 2000));
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    node.finish().await
}

#[tokio::test]
async fn a_caller_that_goes_ends_its_exec_sync() -> Result<()> {
    let node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sleep", "4718"].map(str::to_owned).to_vec(),
        timeout: 0,
    };
    let cri = berth_tests::cri::Cri::new(&node.dir().join("cri.sock"))?;
    let call = tokio::spawn(async move { cri.exec_sync(request).await });
    true_within("the command", SOON, async || {
        let seen = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '";
        Ok(node.sh(&id, seen).await?.contains("sleep 4718"))
    })
    .await?;
    call.abort();
    gone(&node, &id, "sleep 4718").await?;
    node.finish().await
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_no_command_behind() -> Result<()> {
    let mut node = Node::start().await?;
    let (_, id) = busy(&node).await?;
    let mut remote =
        open_exec(&node, Over::Spdy, exec_request(&id, "echo began; sleep 4719")).await?;
    remote.until(STDOUT, "began")?;
    node.kill()?;
    node.launch().await?;
    gone(&node, &id, "sleep 4719").await?;
    node.finish().await
}
