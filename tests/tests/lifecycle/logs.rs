//! The log files that kubelet reads.

use berth_tests::prelude::*;

#[tokio::test]
async fn both_streams_are_written_line_by_line() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("streams").await?;
    let script = "echo one; echo two >&2; echo; echo 'three words here'; printf end";
    let (_, log) = node.run_to_end(&pod, shell("main", script)).await?;
    let texts = |stream: &str| -> Vec<&str> {
        log.iter().filter(|l| l.stream == stream).map(|l| l.text.as_str()).collect()
    };
    assert_eq!(texts("stdout"), ["one", "", "three words here", "end"]);
    assert_eq!(texts("stderr"), ["two"]);
    assert!(log.iter().filter(|line| line.text != "end").all(|line| !line.partial), "{log:?}");
    node.finish().await
}

#[tokio::test]
async fn long_lines_are_split_at_16_kib() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("long").await?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; \
                  head -c 16384 /dev/zero | tr '\\0' y; echo; echo short";
    let (_, log) = node.run_to_end(&pod, shell("main", script)).await?;
    assert!(log.iter().all(|line| line.text.len() <= 16 << 10), "a line is too long");
    let text = stream_text(&log, "stdout");
    let wanted = format!("{}\n{}\nshort\n", "x".repeat(40000), "y".repeat(16384));
    assert!(
        text == wanted,
        "lengths {:?}",
        log.iter().map(|l| (l.text.len(), l.partial)).collect::<Vec<_>>()
    );
    if node.is_berth() {
        let first: Vec<(usize, bool)> =
            log.iter().take(3).map(|line| (line.text.len(), line.partial)).collect();
        assert_eq!(first, [(16384, true), (16384, true), (7232, false)]);
    }
    node.finish().await
}

#[tokio::test]
async fn no_line_of_many_is_lost_or_out_of_order() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("many").await?;
    let (_, log) = node.run_to_end(&pod, shell("main", "seq 1 100000; seq 1 500 >&2")).await?;
    let wanted = |count: u32| (1..=count).map(|number| format!("{number}\n")).collect::<String>();
    if node.is_berth() {
        // The end of a container is told after the end of its log.
        assert!(stream_text(&log, "stdout") == wanted(100_000), "{} lines", log.len());
        assert!(stream_text(&log, "stderr") == wanted(500));
    } else {
        assert!(wanted(100_000).starts_with(&stream_text(&log, "stdout")));
    }
    node.finish().await
}

#[tokio::test]
async fn reopening_makes_the_file_anew() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("rotate").await?;
    let script =
        "echo before; while [ ! -e /tmp/go ]; do usleep 10000; done; echo after; sleep 1000";
    let id = node.run(&pod, shell("main", script)).await?;
    node.logged(&pod, "main.log", "before").await?;
    let path = node.log_file(&pod, "main.log");
    let old = path.with_extension("old");
    std::fs::rename(&path, &old)?;
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    node.cri().reopen_container_log(request.clone()).await?;
    assert!(path.exists(), "made anew by the call");
    node.sh(&id, "touch /tmp/go").await?;
    node.logged(&pod, "main.log", "after").await?;
    let old = std::fs::read_to_string(old)?;
    assert!(old.contains("before") && !old.contains("after"), "{old}");
    node.stop_container(&id, 0).await?;
    node.cri().reopen_container_log(request).await.unwrap_err();
    node.finish().await
}

#[tokio::test]
async fn a_terminal_logs_as_stdout() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("terminal").await?;
    let mut config = shell("main", "tty; echo plain; echo error >&2");
    config.tty = true;
    let (status, log) = node.run_to_end(&pod, config).await?;
    assert_eq!(status.exit_code, 0, "{log:?}");
    assert!(log.iter().all(|line| line.stream == "stdout"), "{log:?}");
    let text = stream_text(&log, "stdout").replace('\r', "");
    assert!(text.starts_with("/dev/") && text.ends_with("plain\nerror\n"), "{text:?}");
    node.finish().await
}

#[tokio::test]
async fn without_a_log_path_output_is_dropped() -> Result<()> {
    let node = Node::start().await?;
    let pod = node.pod("silent").await?;
    let mut config = shell("main", "seq 1 100000; exit 6");
    config.log_path = String::new();
    let id = node.run(&pod, config).await?;
    assert_eq!(node.exited(&id).await?.exit_code, 6);
    let left = std::fs::read_dir(&pod.config.log_directory)?.count();
    assert_eq!(left, 0);
    node.finish().await
}
