//! gzip, member by member: RFC 1952.
//!
//! `flate2`'s own reader of several members takes zeros after the last for a broken member, and
//! tape-minded writers pad with zeros; gzip(1) passes over them, and so does this.

use std::io::{self, BufRead, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};

const DEFLATE: u8 = 8;
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;
/// A name or comment longer than any path is no name.
const MAX_TEXT: u64 = 64 << 10;

enum State {
    Header,
    Body,
    End,
}

/// A reader of what is within; all members must be whole.
pub(in crate::unpack) struct Gzip<R> {
    raw: R,
    state: State,
    inflate: Decompress,
    crc: Crc,
}

impl<R: BufRead> Gzip<R> {
    /// `raw` stands at a member's first byte.
    pub(super) fn new(raw: R) -> Self {
        Self { raw, state: State::Header, inflate: Decompress::new(false), crc: Crc::new() }
    }

    pub(super) fn raw(&self) -> &R {
        &self.raw
    }

    fn header(&mut self) -> io::Result<()> {
        if self.bytes()? != [0x1f, 0x8b] {
            return Err(invalid("bytes after the end are neither a member nor zeros"));
        }
        let [method, flags, ..] = self.bytes::<8>()?;
        if method != DEFLATE || flags & RESERVED != 0 {
            return Err(invalid("a member of unknown method or flags"));
        }
        if flags & FEXTRA != 0 {
            let length = u16::from_le_bytes(self.bytes()?);
            self.skip(length.into())?;
        }
        for flag in [FNAME, FCOMMENT] {
            if flags & flag != 0 {
                self.text()?;
            }
        }
        if flags & FHCRC != 0 {
            self.bytes::<2>()?;
        }
        Ok(())
    }

    fn body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.raw.fill_buf()?;
            let ended = input.is_empty();
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, buffer, FlushDecompress::None);
            let status = status.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            let read = small(self.inflate.total_in() - read);
            let written = small(self.inflate.total_out() - written);
            self.raw.consume(read);
            self.crc.update(buffer.get(..written).unwrap_or_default());
            if status == Status::StreamEnd {
                self.trailer()?;
                return Ok(written);
            }
            if written > 0 {
                return Ok(written);
            }
            if ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if read == 0 {
                return Err(invalid("the stream makes no progress"));
            }
        }
    }

    /// Checksum and length; then another member, zeros, or nothing.
    fn trailer(&mut self) -> io::Result<()> {
        let (sum, length) = (u32::from_le_bytes(self.bytes()?), u32::from_le_bytes(self.bytes()?));
        if sum != self.crc.sum() || length != self.crc.amount() {
            return Err(invalid("a member does not match its checksum"));
        }
        self.crc.reset();
        self.inflate.reset(false);
        self.state = match self.raw.fill_buf()?.first() {
            None => State::End,
            Some(0) => {
                self.zeros()?;
                State::End
            }
            Some(_) => State::Header,
        };
        Ok(())
    }

    fn zeros(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.raw.fill_buf()?;
            let count = bytes.len();
            if bytes.iter().any(|&b| b != 0) {
                return Err(invalid("bytes after the end are neither a member nor zeros"));
            }
            if count == 0 {
                return Ok(());
            }
            self.raw.consume(count);
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.raw.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.raw.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn text(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        self.raw.by_ref().take(MAX_TEXT).read_until(0, &mut text)?;
        match text.last() {
            Some(0) => Ok(()),
            _ => Err(invalid("a member's name does not end")),
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::End => return Ok(0),
                State::Header => {
                    self.header()?;
                    self.state = State::Body;
                }
                State::Body => match self.body(buffer)? {
                    // A member without content.
                    0 => {}
                    count => return Ok(count),
                },
            }
        }
    }
}

/// Differences within one buffer.
fn small(difference: u64) -> usize {
    usize::try_from(difference).unwrap_or(usize::MAX)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
