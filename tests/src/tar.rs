//! A tar writer for image layers: ustar headers, pax records for what those cannot say.

use std::fmt::Write as _;

/// What an entry is.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A regular file with its bytes.
    File(Vec<u8>),
    /// A directory.
    Dir,
    /// A symbolic link to a target.
    Symlink(String),
    /// A hard link to an earlier entry's path.
    Hardlink(String),
    /// A character device.
    Char(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: String,
    kind: Kind,
    mode: u32,
    uid: u64,
    gid: u64,
    xattrs: Vec<(String, String)>,
}

impl Entry {
    /// An entry of root, mode 0755 for directories and 0644 otherwise.
    #[must_use]
    pub fn new(path: &str, kind: Kind) -> Self {
        let mode = if matches!(kind, Kind::Dir) { 0o755 } else { 0o644 };
        Self { path: path.to_owned(), kind, mode, uid: 0, gid: 0, xattrs: Vec::new() }
    }

    /// A regular file with this text.
    #[must_use]
    pub fn file(path: &str, text: &str) -> Self {
        Self::new(path, Kind::File(text.as_bytes().to_vec()))
    }

    /// A directory.
    #[must_use]
    pub fn dir(path: &str) -> Self {
        Self::new(path, Kind::Dir)
    }

    /// With these permission bits, setuid and such included.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// With this owner.
    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    /// With an extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &str) -> Self {
        self.xattrs.push((name.to_owned(), value.to_owned()));
        self
    }

    fn append(&self, out: &mut Vec<u8>) {
        let mut records = String::new();
        let link = match &self.kind {
            Kind::Symlink(target) | Kind::Hardlink(target) => target.as_str(),
            _ => "",
        };
        for (name, value) in &self.xattrs {
            record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        for (name, value) in [("path", self.path.as_str()), ("linkpath", link)] {
            if value.len() > 99 {
                record(&mut records, name, value);
            }
        }
        if !records.is_empty() {
            out.extend(header("pax", b'x', 0o644, (0, 0), records.len(), "", (0, 0)));
            padded(out, records.as_bytes());
        }
        let (flag, data, device) = match &self.kind {
            Kind::File(data) => (b'0', data.as_slice(), (0, 0)),
            Kind::Hardlink(_) => (b'1', [].as_slice(), (0, 0)),
            Kind::Symlink(_) => (b'2', [].as_slice(), (0, 0)),
            Kind::Char(major, minor) => (b'3', [].as_slice(), (*major, *minor)),
            Kind::Dir => (b'5', [].as_slice(), (0, 0)),
            Kind::Fifo => (b'6', [].as_slice(), (0, 0)),
        };
        let owner = (self.uid, self.gid);
        out.extend(header(&self.path, flag, self.mode, owner, data.len(), link, device));
        padded(out, data);
    }
}

/// The tar stream of these entries, in this order.
#[must_use]
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.append(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// `LENGTH NAME=VALUE\n`, where the length counts itself.
fn record(out: &mut String, name: &str, value: &str) {
    let rest = name.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{length} {name}={value}");
}

fn padded(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn header(
    path: &str,
    flag: u8,
    mode: u32,
    (uid, gid): (u64, u64),
    size: usize,
    link: &str,
    (major, minor): (u32, u32),
) -> Vec<u8> {
    // POSIX pax, "ustar Interchange Format": name, numbers in octal, checksum over spaces.
    let fields = |sum: &[u8]| {
        let mut block = Vec::with_capacity(512);
        text(&mut block, path, 100);
        block.extend(format!("{mode:07o}\0{uid:07o}\0{gid:07o}\0{size:011o}\0").as_bytes());
        block.extend(b"00000000000\0");
        block.extend(sum);
        block.push(flag);
        text(&mut block, link, 100);
        block.extend(b"ustar\x0000");
        block.resize(329, 0);
        block.extend(format!("{major:07o}\0{minor:07o}\0").as_bytes());
        block.resize(512, 0);
        block
    };
    let sum: u32 = fields(b"        ").iter().map(|byte| u32::from(*byte)).sum();
    fields(format!("{sum:06o}\0 ").as_bytes())
}

/// The text, cut or filled up with zeros.
fn text(block: &mut Vec<u8>, text: &str, width: usize) {
    let end = block.len() + width;
    block.extend(text.bytes().take(width - 1));
    block.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_what_is_written() {
        let long = format!("dir/{}", "n".repeat(150));
        let bytes = archive(&[
            Entry::dir("dir").mode(0o1777),
            Entry::file("dir/file", "text").mode(0o4755).owner(7, 8).xattr("user.a", "b"),
            Entry::new("dir/hard", Kind::Hardlink("dir/file".into())),
            Entry::new("dir/soft", Kind::Symlink("file".into())),
            Entry::new("dir/null", Kind::Char(1, 3)),
            Entry::file(&long, "x"),
        ]);
        let path = std::env::temp_dir().join(format!("berth-test-tar-{}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        let list = crate::host::run("tar", &["--numeric-owner", "-tvf", path.to_str().unwrap()]);
        std::fs::remove_file(&path).unwrap();
        let list = list.unwrap();
        for part in
            ["drwxrwxrwt 0/0", "-rwsr-xr-x 7/8", "hard link to dir/file", "-> file", "1,3", &long]
        {
            assert!(list.contains(part), "{part} not in {list}");
        }
    }
}
