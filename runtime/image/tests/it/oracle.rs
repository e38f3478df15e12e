//! Layers unpacked one by one and mounted as an overlay must look like the plainest unpacking
//! of all tars in sequence, whatever the tars leave out.

use std::path::PathBuf;

use berth_image::{ImageStore, StoreConfig};
use serde_json::json;

use crate::images::{Compression, Dialect, TestImage, image, oci_archive};
use crate::mounted::{Mounted, assert_same};
use crate::tarball::{Fields, Tarball};
use crate::tree::{Kind, Node, Op, Path, Tree};

/// xorshift: cases are told by their seed alone.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.roll(from.len() as u64)).unwrap()]
    }

    fn path(&mut self) -> Path {
        let depth = 1 + self.roll(3);
        (0..depth).map(|_| self.pick(&["a", "b", "lib", "usr", "x"]).to_owned()).collect()
    }

    fn node(&mut self) -> Node {
        let kind = match self.roll(10) {
            0..=3 => Kind::Dir,
            4..=6 => Kind::File(self.roll(1 << 30).to_string().into_bytes()),
            7..=8 => {
                let targets = ["usr/lib", "/usr", "../b", "a", "/", "/a/b", "lib"];
                Kind::Symlink(self.pick(&targets).to_owned())
            }
            _ => Kind::Fifo,
        };
        let mode = if matches!(kind, Kind::Symlink(_)) {
            0o777
        } else {
            [0o755, 0o700, 0o4755, 0o1777, 0o2711][usize::try_from(self.roll(5)).unwrap()]
        };
        Node {
            kind,
            mode,
            uid: u32::try_from(self.roll(3) * 1000).unwrap(),
            gid: u32::try_from(self.roll(3) * 1000).unwrap(),
            mtime: Some(1_600_000_000 + i64::try_from(self.roll(1000)).unwrap()),
            xattr: (self.roll(4) == 0).then(|| self.roll(1 << 20).to_string().into_bytes()),
        }
    }

    /// One layer's operations, applied to `tree` on the way.
    fn layer(&mut self, tree: &mut Tree) -> Vec<Op> {
        let mut removals: Vec<Op> = (0..self.roll(4))
            .map(|_| match (self.roll(4), self.path()) {
                (0, path) => Op::Opaque(path[..path.len() - 1].to_vec()),
                (_, path) => Op::Whiteout(path),
            })
            .collect();
        // A removal whose own path leads through a symlink below acts from its place in the tar
        // on, so it comes first and alone.
        let bent = removals.iter().find(|op| tree.is_bent(op)).cloned();
        let removals_first = self.roll(2) == 0 || bent.is_some();
        if let Some(bent) = bent {
            removals = vec![bent];
        }
        let mut after = tree.clone();
        after.take_away(&removals);
        if removals.iter().any(|op| after.is_bent(op) != tree.is_bent(op)) {
            // It would remove the very symlink it is reached through.
            removals.clear();
            after = tree.clone();
        }
        if removals_first {
            removals.retain(|op| after.bring(op));
            // What was dropped must not have taken anything away.
            let mut again = tree.clone();
            again.take_away(&removals);
            removals.retain(|op| again.bring(op));
            after = again;
        }
        let mut brought = Vec::new();
        if self.roll(8) == 0 {
            let root = Node { kind: Kind::Dir, mode: 0o711, ..self.node() };
            brought.push(Op::Put(Path::new(), root));
        }
        for _ in 0..1 + self.roll(6) {
            brought.push(match self.roll(6) {
                0 => Op::Link { path: self.path(), target: self.path() },
                _ => Op::Put(self.path(), self.node()),
            });
        }
        brought.retain(|op| after.bring(op));
        if removals_first {
            *tree = after;
            return [removals, brought].concat();
        }
        // After the entries, removals go by paths that the entries must not have bent.
        let bent = |path: &[String]| {
            brought.iter().any(|op| match op {
                Op::Put(p, node) => node.kind != Kind::Dir && path.starts_with(p),
                Op::Link { path: p, .. } => path.starts_with(p),
                _ => false,
            })
        };
        removals.retain(|op| match op {
            Op::Whiteout(path) => !bent(&path[..path.len() - 1]),
            Op::Opaque(path) => !bent(path),
            _ => false,
        });
        tree.take_away(&removals);
        brought.retain(|op| tree.bring(op));
        removals.retain(|op| tree.bring(op));
        [brought, removals].concat()
    }
}

fn tar(ops: &[Op]) -> Vec<u8> {
    ops.iter().fold(Tarball::new(), add).finish()
}

fn add(tar: Tarball, op: &Op) -> Tarball {
    match op {
        Op::Whiteout(path) => {
            let (name, parent) = path.split_last().unwrap();
            let path = [parent, &[format!(".wh.{name}")]].concat();
            tar.file(&path.join("/"), 0, b"")
        }
        Op::Opaque(path) => {
            tar.file(&[&path[..], &[".wh..wh..opq".to_owned()]].concat().join("/"), 0, b"")
        }
        Op::Link { path, target } => tar.hard_link(&path.join("/"), &target.join("/")),
        Op::Put(path, node) => {
            let name = format!("./{}", path.join("/"));
            let (kind, link, content): (u8, &[u8], &[u8]) = match &node.kind {
                Kind::Dir => (b'5', b"", b""),
                Kind::File(content) => (b'0', b"", content),
                Kind::Symlink(target) => (b'2', target.as_bytes(), b""),
                Kind::Fifo => (b'6', b"", b""),
            };
            let fields = Fields {
                kind,
                name: name.as_bytes(),
                link,
                mode: node.mode,
                uid: node.uid.into(),
                gid: node.gid.into(),
                mtime: node.mtime.unwrap(),
                ..Fields::default()
            };
            let tar = match &node.xattr {
                Some(value) => tar.pax(&[("SCHILY.xattr.trusted.berth", value)]),
                None => tar,
            };
            tar.entry(&fields, content)
        }
    }
}

fn show(ops: &[Op]) -> String {
    let line = |op: &Op| match op {
        Op::Put(path, node) => format!("put {} {:?}", path.join("/"), node.kind),
        Op::Link { path, target } => format!("link {} to {}", path.join("/"), target.join("/")),
        Op::Whiteout(path) => format!("whiteout {}", path.join("/")),
        Op::Opaque(path) => format!("opaque {}", path.join("/")),
    };
    ops.iter().map(line).collect::<Vec<_>>().join("\n")
}

struct Bench {
    dir: tempfile::TempDir,
    store: std::sync::Arc<ImageStore>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(StoreConfig::new(dir.path().join("image"))).await.unwrap();
        Self { dir, store }
    }

    async fn import(&self, image: &TestImage, what: &str) -> std::sync::Arc<berth_image::Image> {
        let path: PathBuf = self.dir.path().join("archive.tar");
        let archive = oci_archive(&[(image, &[("io.containerd.image.name", "case.test/x:1")])]);
        std::fs::write(&path, archive).unwrap();
        let ids = self.store.import_oci_archive(&path).await;
        let ids = ids.unwrap_or_else(|e| panic!("{}\n{what}", e.report()));
        self.store.find(ids[0].as_str()).unwrap()
    }

    /// Imports the layers, mounts them, compares, and reads all files without the mount, too.
    async fn check(&self, layers: &[Vec<Op>], wanted: &Tree, what: &str) {
        let tars: Vec<_> = layers.iter().map(|ops| tar(ops)).collect();
        let image = image(&tars, Dialect::Oci, Compression::Plain, json!({}));
        let image = self.import(&image, what).await;
        let snapshot = self.store.prepare("ctr", &image).await.unwrap();
        let mounted = Mounted::new(&self.dir.path().join("merged"), &snapshot);
        assert_same(mounted.tree(), wanted, what);
        drop(mounted);
        for (path, node) in &wanted.nodes {
            if let Kind::File(content) = &node.kind {
                let read = self.store.read_file(&image, &path.join("/"), 1 << 20).await.unwrap();
                assert_eq!(read.as_ref(), Some(content), "/{}\n{what}", path.join("/"));
            }
        }
        self.store.release("ctr").await.unwrap();
        self.store.remove(image.id.as_str()).await.unwrap();
    }

    /// Nothing of all that was imported is left.
    async fn check_empty(&self) {
        self.store.settle().await.unwrap();
        let root = self.dir.path().join("image");
        for (dir, wanted) in [("layers", 1), ("images", 0), ("rw", 0), ("staging", 0), ("trash", 0)]
        {
            let entries: Vec<_> = std::fs::read_dir(root.join(dir)).unwrap().flatten().collect();
            assert_eq!(entries.len(), wanted, "{dir}: {entries:?}");
        }
        let usage = self.store.fs_usage();
        assert_eq!((usage.bytes, usage.inodes), (0, 0));
    }
}

/// The directories of layers in the store that hold a file of this name.
fn layers_with(bench: &Bench, path: &str) -> usize {
    let layers = std::fs::read_dir(bench.dir.path().join("image/layers")).unwrap();
    layers.flatten().filter(|layer| layer.path().join("fs").join(path).exists()).count()
}

fn put(path: &str, kind: Kind, mode: u32) -> Op {
    let path = path.split('/').map(str::to_owned).collect();
    Op::Put(path, Node { kind, mode, mtime: Some(1_600_000_000), ..Node::implicit() })
}

/// Layers whose tar leaves out directories that are there below.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_its_parents_is_shared_and_patched_for_each_base() {
    let bench = Bench::new().await;
    let file = |text: &str| Kind::File(text.as_bytes().to_vec());
    let leaning = vec![
        put("srv", Kind::Dir, 0o711),
        put("srv/deep/er/f", file("f"), 0o600),
        put("opt/f", file("of no parent below"), 0o644),
    ];
    let bases = [0o700, 0o750, 0o1777].map(|mode| {
        let owned = put("srv/deep", Kind::Dir, mode);
        vec![put("srv", Kind::Dir, 0o755), owned, put("srv/deep/er", Kind::Dir, mode ^ 0o22)]
    });
    let mut images = Vec::new();
    for (number, base) in bases.iter().enumerate() {
        let layers = [base.clone(), leaning.clone()];
        let mut tree = Tree::new();
        for layer in &layers {
            layer.iter().for_each(|op| assert!(tree.bring(op)));
        }
        bench.check(&layers, &tree, &format!("base {number}")).await;
        let tars: Vec<_> = layers.iter().map(|ops| tar(ops)).collect();
        let image = image(&tars, Dialect::Oci, Compression::Plain, json!({}));
        images.push(bench.import(&image, "again").await);
    }
    assert_eq!(layers_with(&bench, "srv/deep/er/f"), 1, "the bulk is shared");
    // A base with a symlink in the place of the parent takes the layer apart.
    let linked = vec![
        put("other/er", Kind::Dir, 0o755),
        put("srv", Kind::Dir, 0o755),
        put("srv/deep", Kind::Symlink("../other".to_owned()), 0o777),
    ];
    let layers = [linked, leaning.clone()];
    let mut tree = Tree::new();
    layers.iter().flatten().for_each(|op| assert!(tree.bring(op)));
    bench.check(&layers, &tree, "a symlink below").await;
    for image in images {
        bench.store.remove(image.id.as_str()).await.unwrap();
    }
    bench.check_empty().await;
}

async fn generated(seeds: std::ops::Range<u64>) {
    let bench = Bench::new().await;
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let mut tree = Tree::new();
        let layers: Vec<_> = (0..1 + dice.roll(4)).map(|_| dice.layer(&mut tree)).collect();
        let what = layers.iter().map(|ops| show(ops)).collect::<Vec<_>>().join("\n--\n");
        bench.check(&layers, &tree, &format!("seed {seed}\n{what}")).await;
    }
    bench.check_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_layers_mount_as_if_unpacked_in_sequence() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("BERTH_ORACLE_FIRST").unwrap_or(0);
    generated(first..first + number("BERTH_ORACLE_CASES").unwrap_or(200)).await;
}
