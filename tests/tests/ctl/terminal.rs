//! Progress on a terminal.

use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use berth_tests::prelude::*;
use nix::pty::{Winsize, openpty};

use crate::ctl::{command, own_image, push};

/// A terminal that nobody sits at; what is written to it is collected.
struct Terminal {
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn new(columns: u16, rows: u16) -> Result<(Self, Stdio)> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None)?;
        let screen = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&screen);
        let mut master = std::fs::File::from(pty.master);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Fails once the other end is closed.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                if let (Ok(mut seen), Some(new)) = (collected.lock(), buffer.get(..count)) {
                    seen.extend(new);
                }
            }
        });
        Ok((Self { screen }, Stdio::from(pty.slave)))
    }

    fn text(&self) -> String {
        let screen = self.screen.lock().map(|seen| seen.clone()).unwrap_or_default();
        String::from_utf8_lossy(&screen).into_owned()
    }
}

#[tokio::test]
async fn a_pull_draws_a_bar_for_each_layer() -> Result<()> {
    let node = Node::start().await?;
    let built = own_image("bars")?.build();
    let reference = push(&node, "bars:1", &built)?;
    let biggest = built.blobs.iter().max_by_key(|blob| blob.bytes.len()).context("a layer")?;
    let short = biggest.digest.get(7..19).context("a long digest")?;
    let (terminal, stderr) = Terminal::new(100, 30)?;
    node.proxy().hold_after(200_000);
    let mut pull = command(&node, &["image", "pull", &reference]).stderr(stderr).spawn()?;
    let begun = async || {
        let text = terminal.text();
        let line = text.lines().rfind(|line| line.contains(short) && line.contains("receiving"));
        Ok(line.is_some_and(|line| line.contains("[=")))
    };
    true_within("a bar that has begun", Duration::from_secs(20), begun).await?;
    node.proxy().mend();
    assert!(pull.wait().await?.success());
    true_within("the last line", Duration::from_secs(10), async || {
        Ok(terminal.text().contains(&format!("{reference}: done")))
    })
    .await?;
    let text = terminal.text();
    for words in ["%)", "MB", "\x1b[K", "\x1b[3F", &format!("{short}  done")] {
        assert!(text.contains(words), "{words:?} is not in {text:?}");
    }
    let wide = |line: &str| line.trim_start_matches(|c| c != ' ').chars().count();
    assert!(text.lines().all(|line| wide(line) <= 110), "{text:?}");
    node.finish().await
}
