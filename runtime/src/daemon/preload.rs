//! Images that come with the machine: OCI archives in a directory, imported at start.

use std::io;
use std::path::{Path, PathBuf};

use berth_image::ImageStore;

/// Imports every `*.tar` of `dir` in the order of their names. One that can't be imported is
/// logged and left out: a bad file must not keep the node's pods down.
pub(super) async fn import(images: &ImageStore, dir: &Path) {
    let archives = match archives(dir).await {
        Ok(archives) => archives,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "no image is preloaded");
            return;
        }
    };
    for archive in archives {
        match images.import_oci_archive(&archive).await {
            Ok(_) => tracing::info!(archive = %archive.display(), "image preloaded"),
            Err(error) => {
                let error = error.report();
                tracing::error!(archive = %archive.display(), error, "image not preloaded");
            }
        }
    }
}

async fn archives(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = tokio::fs::read_dir(dir).await?;
    let mut archives = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            archives.push(path);
        }
    }
    archives.sort();
    Ok(archives)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_dir::TestDir;

    #[tokio::test]
    async fn only_tar_files_count_in_the_order_of_their_names() {
        let dir = TestDir::new("preload");
        for name in ["b.tar", "a.tar", "notes.txt", "c.tar.gz"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> = archives(dir.path()).await.unwrap();
        assert_eq!(names, [dir.path().join("a.tar"), dir.path().join("b.tar")]);
        assert!(archives(Path::new("/nonexistent/berth")).await.is_err());
    }
}
