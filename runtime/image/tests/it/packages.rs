//! Real trees: the files of Debian packages that are installed here, packed by GNU tar in each of
//! its formats, a package a layer, must look mounted as GNU tar unpacks them one after another.
//! Among them are merged /usr (packages that know /bin as a directory where it is a symlink below),
//! hard links, and directories that many packages bring.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use berth_image::{ImageStore, StoreConfig};
use serde_json::json;

use crate::images::{Compression, Dialect, image, oci_archive};
use crate::mounted::{Mounted, assert_same, tree_of};
use crate::tree::Kind;

/// The first brings the root's directories and symlinks. Those that are not installed are left
/// out, and said.
const PACKAGES: [&str; 5] = ["base-files", "busybox-static", "e2fsprogs", "iproute2", "tar"];

const FORMATS: [&str; 3] = ["gnu", "posix", "ustar"];

/// The package's files as its archive has them, without what was left out at its installation.
fn files(package: &str) -> Option<Vec<String>> {
    let listed = Command::new("dpkg-query").args(["-L", package]).output().ok()?;
    let text = String::from_utf8(listed.stdout).ok()?;
    let there = |path: &&str| path.starts_with('/') && Path::new(path).symlink_metadata().is_ok();
    let files: Vec<String> = text
        .lines()
        .filter(there)
        .map(|path| format!("./{}", path.trim_start_matches('/').trim_end_matches('.')))
        .collect();
    (listed.status.success() && files.len() > 1).then_some(files)
}

fn tar(args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = tar.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success(), "tar {args:?}");
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn packages_mount_as_tar_unpacks_them_in_sequence() {
    let installed: Vec<_> = PACKAGES.iter().filter_map(|it| Some((*it, files(it)?))).collect();
    for package in PACKAGES.iter().filter(|it| !installed.iter().any(|(name, _)| name == *it)) {
        println!("left out, as it is not installed: {package}");
    }
    if installed.len() < 2 {
        println!("not run: this machine has no Debian packages to make layers of");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.unwrap();
    for (round, format) in FORMATS.iter().enumerate() {
        let pack = |files: &Vec<String>| {
            let format = format!("--format={format}");
            let args = ["-C", "/", "--no-recursion", &format, "-T", "-", "-c"];
            tar(&args, files.join("\n").as_bytes())
        };
        let tars: Vec<Vec<u8>> = installed.iter().map(|(_, files)| pack(files)).collect();
        let plain = dir.path().join(format!("plain-{round}"));
        fs::create_dir(&plain).unwrap();
        for layer in &tars {
            let args = ["-C", plain.to_str().unwrap(), "--keep-directory-symlink", "-xp"];
            tar(&[&args[..], &["--same-owner", "--numeric-owner"]].concat(), layer);
        }
        let packed = [Compression::Gzip, Compression::Zstd, Compression::Plain][round];
        let image = image(&tars, Dialect::Oci, packed, json!({}));
        let archive = dir.path().join("archive.tar");
        let names = [("io.containerd.image.name", "packages.test/x:1")];
        fs::write(&archive, oci_archive(&[(&image, &names)])).unwrap();
        let ids = store.import_oci_archive(&archive).await.unwrap_or_else(|e| {
            panic!("{format}: {}", e.report());
        });
        let found = store.find(ids[0].as_str()).unwrap();
        let snapshot = store.prepare("ctr", &found).await.unwrap();
        let mounted = Mounted::new(&dir.path().join("merged"), &snapshot);
        let mut wanted = tree_of(&plain);
        // GNU tar leaves the time of its own writing on directories that it finds; the generated
        // cases check what directories have.
        let dirs = wanted.nodes.values_mut().filter(|node| node.kind == Kind::Dir);
        dirs.for_each(|node| node.mtime = None);
        assert_same(mounted.tree(), &wanted, format);
        drop(mounted);
        store.release("ctr").await.unwrap();
        store.remove(found.id.as_str()).await.unwrap();
    }
}
