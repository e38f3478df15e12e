//! A cpio archive of the form "newc", which Linux unpacks as its initial file system
//! (<https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>).

/// An archive under construction.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    /// A file that may be executed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, content);
    }

    /// The whole archive, with its trailer.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (inode, size, name) = (self.entries, content.len(), path.len() + 1);
        // Magic, then: inode, mode, uid, gid, links, mtime, size, device (2), its own device (2),
        // length of the name, checksum (unused).
        let header = format!(
            "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{1:08X}{0:08X}{size:08X}\
             {0:08X}{0:08X}{0:08X}{0:08X}{name:08X}{0:08X}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_contents_are_padded_to_four_bytes() {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.file("bin/a", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        // A header is 110 bytes; "bin\0" fills up to 116 with two more.
        assert_eq!(starts, [0, 116, 240]);
        assert_eq!(text.get(116 + 110..116 + 110 + 6), Some("bin/a\0"));
        assert_eq!(text.get(232..240), Some("hello\0\0\0"));
        assert_eq!(text.get(116 + 54..116 + 62), Some("00000005"), "the size");
        assert_eq!(text.get(116 + 94..116 + 102), Some("00000006"), "the name's length");
        assert_eq!(text.get(240 + 110..240 + 120), Some("TRAILER!!!"));
    }
}
