//! Pulls in a cgroup of their own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use berth_tests::image::{Image, Layer, Packing};
use berth_tests::prelude::*;
use berth_tests::tar::{Entry, archive};

use crate::{noise, push, spec};

/// A cgroup in every hierarchy; goes with its value.
struct Cgroup(String);

impl Cgroup {
    fn dirs(&self) -> Result<Vec<PathBuf>> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup")?.flatten();
        Ok(hierarchies.map(|entry| entry.path().join(&self.0)).filter(|dir| dir.is_dir()).collect())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in self.dirs().unwrap_or_default() {
            // The daemon may not have come to make it.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn threads(tasks: &Path) -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(tasks).with_context(|| tasks.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn layers_are_unpacked_in_the_pull_cgroup_and_nothing_else_is() -> Result<()> {
    let cgroup = Cgroup(format!("berth-test-pulls-{}", std::process::id()));
    let config = format!("[image]\npull_cgroup = \"/{}\"\n", cgroup.0);
    let started = Node::builder().config(&config).start().await;
    if !Path::new("/sys/fs/cgroup/cpu/tasks").exists() {
        let error = started.err().context("a daemon with image.pull_cgroup on cgroup v2")?;
        assert!(format!("{error:#}").contains("image.pull_cgroup"), "{error:#}");
        return Ok(());
    }
    let node = started?;
    let Some(daemon) = node.daemon_pid().filter(|_| node.is_berth()) else {
        println!("skipped: the key is Berth's");
        return node.finish().await;
    };
    let tar = archive(&[Entry::file("large", &noise(8 << 20))]);
    let image = Image::new(vec![Layer::packed(&tar, Packing::Gzip)?]).build();
    let reference = push(&node, "confined", "1", &image)?;
    let tasks = Path::new("/sys/fs/cgroup/cpu").join(&cgroup.0).join("tasks");
    assert_eq!(threads(&tasks)?, BTreeSet::new());

    node.proxy().hold_after(2 << 20);
    let (cri, wanted) = (node.cri().clone(), Some(spec(&reference)));
    let pull = tokio::spawn(async move {
        cri.pull_image(PullImageRequest { image: wanted, ..Default::default() }).await
    });
    // One that inflates and one that writes.
    let both = async || Ok(Some(threads(&tasks)?).filter(|inside| inside.len() == 2));
    let inside = eventually("two threads in the cgroup", Duration::from_secs(20), both).await?;
    for thread in &inside {
        let thread = format!("/proc/{daemon}/task/{thread}");
        assert!(Path::new(&thread).exists(), "{thread}");
    }
    // In the other hierarchies, too.
    for dir in cgroup.dirs()?.iter().filter(|dir| dir.join("tasks").exists()) {
        assert_eq!(threads(&dir.join("tasks"))?, inside, "{}", dir.display());
    }
    node.proxy().mend();
    assert_eq!(pull.await??.image_ref, image.config.digest);
    true_within("no thread in it", Duration::from_secs(20), async || {
        Ok(threads(&tasks)?.is_empty())
    })
    .await?;
    node.finish().await
}
