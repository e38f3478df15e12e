//! Bytes of a stream to lines of kubelet's log format.
//!
//! ```text
//! 2026-11-23T08:40:00.123456789Z stdout F the content
//! ```
//! `F` ends a line, `P` is a part of one that is longer than 16 KiB, or that the stream's end cut
//! off. A line is never split merely because a read ended within it. `\r` before the line feed is
//! dropped. Source: the CRI logging design of Kubernetes; containerd writes the same.

use super::stamp::Stamp;

/// Bytes of content in one line of the log.
pub(crate) const MAX_CONTENT: usize = 16 << 10;
/// Bytes of a line before its content, the same for both streams.
pub(crate) const PREFIX_LEN: usize = 40;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// The bytes before a line's content, as full and as partial line.
#[derive(Debug, Clone, Copy)]
struct Prefixes {
    full: [u8; PREFIX_LEN],
    partial: [u8; PREFIX_LEN],
}

impl Prefixes {
    fn new(stamp: &Stamp, stream: Stream) -> Self {
        let mut full = [b' '; PREFIX_LEN];
        let name = stream.name();
        let text = stamp.as_bytes().iter().chain(b" ").chain(name).chain(b" F ");
        for (place, byte) in full.iter_mut().zip(text) {
            *place = *byte;
        }
        let mut partial = full;
        // The tag stands before the last space.
        if let Some(tag) = partial.get_mut(PREFIX_LEN - 2) {
            *tag = b'P';
        }
        Self { full, partial }
    }
}

/// A whole line of the log with this content, which must hold no line feed.
pub(crate) fn full_line(stream: Stream, content: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(PREFIX_LEN + content.len() + 1);
    push_line(&mut out, &Prefixes::new(&Stamp::now(), stream).full, &[content.as_bytes()]);
    out
}

/// Cuts one stream into lines.
#[derive(Debug)]
pub(crate) struct Splitter {
    stream: Stream,
    /// The start of a line whose end has not come: at most `MAX_CONTENT` bytes and a `\r`.
    pending: Vec<u8>,
}

impl Splitter {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Takes what was read at `stamp` and appends to `out` the lines that became whole.
    pub(crate) fn push(&mut self, mut input: &[u8], stamp: &Stamp, out: &mut Vec<u8>) {
        let prefixes = Prefixes::new(stamp, self.stream);
        if !self.pending.is_empty() {
            input = self.finish_pending(input, &prefixes, out);
        }
        while let Some(end) = memchr::memchr(b'\n', input) {
            let (line, rest) = input.split_at(end);
            input = rest.get(1..).unwrap_or_default();
            push_whole(out, &prefixes, line);
        }
        self.keep(input, &prefixes, out);
    }

    /// Appends what the stream's end cut off, as partial lines: no line feed came.
    pub(crate) fn finish(&mut self, stamp: &Stamp, out: &mut Vec<u8>) {
        let prefixes = Prefixes::new(stamp, self.stream);
        for part in std::mem::take(&mut self.pending).chunks(MAX_CONTENT) {
            push_line(out, &prefixes.partial, &[part]);
        }
    }

    /// Moves `input` on to the end of the line that is pending and gives the rest.
    fn finish_pending<'a>(
        &mut self,
        input: &'a [u8],
        prefixes: &Prefixes,
        out: &mut Vec<u8>,
    ) -> &'a [u8] {
        let Some(end) = memchr::memchr(b'\n', input) else {
            // Bounded: what makes it too long is written out in `keep`.
            let mut joined = std::mem::take(&mut self.pending);
            joined.extend_from_slice(input);
            self.keep(&joined, prefixes, out);
            return &[];
        };
        let (line, rest) = input.split_at(end);
        let mut joined = std::mem::take(&mut self.pending);
        joined.extend_from_slice(line);
        push_whole(out, prefixes, &joined);
        rest.get(1..).unwrap_or_default()
    }

    /// Keeps the start of a line, and writes out what is too long to be kept. One byte more than
    /// the limit stays: it may be the `\r` of a line that just fits.
    fn keep(&mut self, mut start: &[u8], prefixes: &Prefixes, out: &mut Vec<u8>) {
        while start.len() > MAX_CONTENT + 1 {
            let (part, rest) = start.split_at(MAX_CONTENT);
            push_line(out, &prefixes.partial, &[part]);
            start = rest;
        }
        self.pending.extend_from_slice(start);
    }
}

/// Appends a line that ended, in parts where it is too long.
fn push_whole(out: &mut Vec<u8>, prefixes: &Prefixes, line: &[u8]) {
    let mut line = line.strip_suffix(b"\r").unwrap_or(line);
    while line.len() > MAX_CONTENT {
        let (part, rest) = line.split_at(MAX_CONTENT);
        push_line(out, &prefixes.partial, &[part]);
        line = rest;
    }
    push_line(out, &prefixes.full, &[line]);
}

fn push_line(out: &mut Vec<u8>, prefix: &[u8; PREFIX_LEN], content: &[&[u8]]) {
    out.extend_from_slice(prefix);
    for part in content {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    type Lines = Vec<(char, Vec<u8>)>;

    /// Tag and content of every line that `chunks` become.
    fn split(chunks: &[&[u8]]) -> Lines {
        let stamp = Stamp::at(1_795_423_383, 5);
        let mut splitter = Splitter::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, &stamp, &mut out);
        }
        splitter.finish(&stamp, &mut out);
        assert!(splitter.pending.is_empty());
        parse(&out)
    }

    fn parse(mut out: &[u8]) -> Lines {
        let mut lines = Vec::new();
        while !out.is_empty() {
            let (line, rest) = out.split_at(out.iter().position(|b| *b == b'\n').unwrap());
            assert_eq!(&line[..38], b"2026-11-23T08:43:03.000000005Z stdout ");
            assert_eq!(line[39], b' ');
            lines.push((char::from(line[38]), line[40..].to_vec()));
            out = &rest[1..];
        }
        lines
    }

    fn text(tag: char, content: &str) -> (char, Vec<u8>) {
        (tag, content.as_bytes().to_vec())
    }

    #[test]
    fn a_line_has_kubelets_format() {
        let mut out = Vec::new();
        Splitter::new(Stream::Stderr).push(b"oh\n", &Stamp::at(0, 0), &mut out);
        assert_eq!(out, b"1970-01-01T00:00:00.000000000Z stderr F oh\n");
    }

    #[test]
    fn lines_are_cut_at_line_feeds_only() {
        let cases: [(&[&[u8]], Lines); 7] = [
            (&[], vec![]),
            (&[b"a\nb\n"], vec![text('F', "a"), text('F', "b")]),
            (&[b"a", b"b", b"\n"], vec![text('F', "ab")]),
            (&[b"\n\n"], vec![text('F', ""), text('F', "")]),
            (
                &[b"a\r\n\r\n", b"b\r", b"\nc\rd\n"],
                vec![text('F', "a"), text('F', ""), text('F', "b"), text('F', "c\rd")],
            ),
            (&[b"a\nrest"], vec![text('F', "a"), text('P', "rest")]),
            (&[b"rest\r"], vec![text('P', "rest\r")]),
        ];
        for (chunks, lines) in cases {
            assert_eq!(split(chunks), lines, "{chunks:?}");
        }
    }

    #[test]
    fn only_what_is_longer_than_16_kib_is_split() {
        let fits = vec![b'x'; MAX_CONTENT];
        let with = |end: &[u8]| [&fits[..], end].concat();
        assert_eq!(split(&[&with(b"\n")]), [('F', fits.clone())]);
        assert_eq!(split(&[&with(b"\r\n")]), [('F', fits.clone())]);
        assert_eq!(split(&[&with(b"\r"), b"\n"]), [('F', fits.clone())]);
        assert_eq!(split(&[&with(b"yz\n")]), [('P', fits.clone()), text('F', "yz")]);
        assert_eq!(split(&[&with(b""), b"y", b"\n"]), [('P', fits.clone()), text('F', "y")]);
        let thrice = vec![b'x'; 3 * MAX_CONTENT];
        assert_eq!(split(&[&thrice]), vec![('P', fits.clone()); 3]);
    }

    #[test]
    fn the_cut_of_the_reads_never_shows() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state).unwrap() % below
        };
        for _ in 0..200 {
            let mut input = Vec::new();
            for _ in 0..random(20) {
                let length =
                    [0, 1, 100, MAX_CONTENT - 1, MAX_CONTENT, MAX_CONTENT + 1, 40_000][random(7)];
                input.extend(vec![b'a'; length]);
                input.extend([&b"\n"[..], b"\r\n", b"\r", b""][random(4)]);
            }
            let whole = split(&[&input]);
            let mut chunks = Vec::new();
            let mut rest = &input[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random(rest.len().min(20_000)) + 1);
                chunks.push(now);
                rest = later;
            }
            assert_eq!(split(&chunks), whole);
        }
    }
}
