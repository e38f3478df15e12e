//! The cgroup of the threads that unpack.

use berth_image::ThreadSetup;

use crate::shim::{CgroupError, Hierarchies};

/// Why `image.pull_cgroup` can't be kept. The daemon does not start without it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no hierarchy that takes single threads.
    #[error(
        "image.pull_cgroup: {cgroup:?} needs cgroup v1: with cgroup v2 alone, a thread stays in \
         the cgroup of its process"
    )]
    Unified {
        /// The value.
        cgroup: String,
    },
    /// The cgroup can't be made or joined.
    #[error("image.pull_cgroup: {cgroup:?}")]
    Join {
        /// The value.
        cgroup: String,
        /// Why not.
        source: CgroupError,
    },
    /// No thread could be had to try it.
    #[error("image.pull_cgroup: start a thread")]
    Thread(#[source] std::io::Error),
}

/// What a thread that unpacks has to do to be in `cgroup`, tried once here.
pub(super) fn setup(hierarchies: Hierarchies, cgroup: &str) -> Result<ThreadSetup, Error> {
    let cgroup = cgroup.to_owned();
    if hierarchies.unified() {
        return Err(Error::Unified { cgroup });
    }
    try_to_join(&hierarchies, &cgroup)?;
    Ok(ThreadSetup::new(move || {
        // It was possible at the start. Now somebody waits for an image.
        if let Err(error) = hierarchies.join_thread(&cgroup) {
            tracing::warn!(%cgroup, %error, "unpacking outside of image.pull_cgroup");
        }
    }))
}

/// On a thread that ends, since there is no way back for it.
fn try_to_join(hierarchies: &Hierarchies, cgroup: &str) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let join = || hierarchies.join_thread(cgroup);
        let thread =
            std::thread::Builder::new().spawn_scoped(scope, join).map_err(Error::Thread)?;
        let joined = thread.join().map_err(|_| Error::Thread(std::io::Error::other("panicked")))?;
        joined.map_err(|source| Error::Join { cgroup: cgroup.to_owned(), source })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::test_dir::TestDir;

    #[test]
    fn cgroup_v2_alone_is_refused_with_the_key_and_the_value() {
        let unified = Hierarchies::parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n");
        let text = setup(unified, "/pulls").unwrap_err().to_string();
        assert!(text.contains("image.pull_cgroup") && text.contains("\"/pulls\""), "{text}");
    }

    #[test]
    fn a_cgroup_that_cannot_be_made_is_refused_at_the_start() {
        let dir = TestDir::new("pull-cgroup");
        let file = dir.path().join("cpu");
        std::fs::write(&file, "").unwrap();
        let nowhere = Hierarchies::parse(&format!("cgroup {} cgroup rw 0 0\n", file.display()));
        let error = setup(nowhere, "/pulls").unwrap_err();
        assert!(matches!(&error, Error::Join { cgroup, .. } if cgroup == "/pulls"), "{error}");
    }
}
