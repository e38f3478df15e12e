//! Writing tars, good and bad ones, with every field in the test's hand.

/// A tar being written.
#[derive(Default, Clone)]
pub(crate) struct Tarball {
    bytes: Vec<u8>,
}

/// One header's fields.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    pub(crate) kind: u8,
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: i64,
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
}

impl Default for Fields<'_> {
    fn default() -> Self {
        Self {
            kind: b'0',
            name: b"",
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            size: 0,
            device: (0, 0),
        }
    }
}

impl Tarball {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(&Fields { kind: b'5', name: name.as_bytes(), mode, ..Fields::default() }, b"")
    }

    pub(crate) fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(&Fields { name: name.as_bytes(), mode, ..Fields::default() }, content)
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        let (name, link) = (name.as_bytes(), target.as_bytes());
        self.entry(&Fields { kind: b'2', name, link, mode: 0o777, ..Fields::default() }, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        let (name, link) = (name.as_bytes(), target.as_bytes());
        self.entry(&Fields { kind: b'1', name, link, ..Fields::default() }, b"")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', &pax_records(records))
    }

    /// PAX records for all that follow.
    pub(crate) fn global(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'g', &pax_records(records))
    }

    pub(crate) fn extended(self, kind: u8, data: &[u8]) -> Self {
        self.entry(&Fields { kind, name: b"meta", ..Fields::default() }, data)
    }

    pub(crate) fn entry(mut self, fields: &Fields<'_>, content: &[u8]) -> Self {
        let size = if content.is_empty() { fields.size } else { content.len() as u64 };
        self.bytes.extend_from_slice(&header(fields, size));
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Without the end marker.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = 1 + key.len() + 1 + value.len() + 1;
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

fn header(fields: &Fields<'_>, size: u64) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, fields.name);
    put(100, format!("{:07o}\0", fields.mode).as_bytes());
    put(108, format!("{:07o}\0", fields.uid).as_bytes());
    put(116, format!("{:07o}\0", fields.gid).as_bytes());
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", fields.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[fields.kind]);
    put(157, fields.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}\0", fields.device.0).as_bytes());
    put(337, format!("{:07o}\0", fields.device.1).as_bytes());
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
