//! Header blocks: names and values, compressed by one zlib stream per direction.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Error;
use super::dictionary::dictionary;

/// Bytes of one block at most, decompressed. A stream of Kubernetes needs some hundred.
const MAX_BLOCK: usize = 64 << 10;
/// Headers of one block at most.
const MAX_HEADERS: usize = 256;
/// What is decompressed at a time.
const STEP: usize = 4 << 10;

/// Names (in small letters) and values of one block, in their order. A name that comes several
/// times with one value each is what SPDY writes as one value with NULs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers of these names and values.
    #[must_use]
    pub fn new(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(k, v)| (k.to_ascii_lowercase(), (*v).to_owned())).collect())
    }

    /// The first value of a name, however the name is written.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The block before its compression.
    fn encode(&self) -> Vec<u8> {
        let mut block = length(self.0.len()).to_vec();
        for part in self.0.iter().flat_map(|(k, v)| [k, v]) {
            block.extend_from_slice(&length(part.len()));
            block.extend_from_slice(part.as_bytes());
        }
        block
    }

    fn decode(mut block: &[u8]) -> Result<Self, Error> {
        let count = number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(Error::Headers("too many"));
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut block)?.to_ascii_lowercase();
            let value = text(&mut block)?;
            pairs.extend(value.split('\0').map(|one| (name.clone(), one.to_owned())));
        }
        if block.is_empty() { Ok(Self(pairs)) } else { Err(Error::Headers("more than counted")) }
    }
}

fn length(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes()
}

fn number(block: &mut &[u8]) -> Result<usize, Error> {
    let (bytes, rest) = block.split_first_chunk().ok_or(Error::Headers("cut short"))?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| Error::Headers("too long"))
}

fn text(block: &mut &[u8]) -> Result<String, Error> {
    let count = number(block)?;
    let (bytes, rest) = block.split_at_checked(count).ok_or(Error::Headers("cut short"))?;
    *block = rest;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Compresses the blocks of one direction, in the order in which they are sent.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Deflater {
    /// The start of the stream.
    pub fn new() -> Result<Self, Error> {
        let mut stream = Compress::new(Compression::fast(), true);
        stream.set_dictionary(&dictionary()).map_err(|_| Error::Headers("no dictionary"))?;
        Ok(Self(stream))
    }

    /// The next block.
    pub fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let plain = headers.encode();
        // Stored blocks are the worst case; a sync marker comes on top.
        let mut packed = Vec::with_capacity(plain.len() + plain.len() / 16 + 128);
        let before = self.0.total_in();
        self.0
            .compress_vec(&plain, &mut packed, FlushCompress::Sync)
            .map_err(|_| Error::Headers("cannot be compressed"))?;
        let taken = usize::try_from(self.0.total_in() - before).unwrap_or_default();
        if taken == plain.len() { Ok(packed) } else { Err(Error::Headers("too long")) }
    }
}

/// Decompresses the blocks of one direction, in the order in which they came.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The next block.
    pub fn block(&mut self, packed: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::new();
        let mut input = packed;
        loop {
            let before = (self.0.total_in(), self.0.total_out());
            plain.reserve_exact(STEP);
            let stepped = self.0.decompress_vec(input, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).unwrap_or(usize::MAX);
            input = input.get(taken..).unwrap_or_default();
            match stepped {
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.0.set_dictionary(&dictionary());
                    set.map_err(|_| Error::Headers("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Error::Headers("not compressed as they should be")),
                Ok(Status::StreamEnd) => return Err(Error::Headers("the zlib stream ends")),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if plain.len() > MAX_BLOCK {
                return Err(Error::Headers("too long"));
            }
            let idle = taken == 0 && self.0.total_out() == before.1;
            if idle || (input.is_empty() && plain.len() < plain.capacity()) {
                return if input.is_empty() {
                    Headers::decode(&plain)
                } else {
                    Err(Error::Headers("not compressed as they should be"))
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_in_their_order() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::default());
        let long = "x".repeat(20_000);
        for headers in [
            Headers::new(&[("streamType", "error"), ("port", "80"), ("requestID", "0")]),
            Headers::new(&[]),
            Headers::new(&[("streamtype", "data"), ("long", &long)]),
            Headers::new(&[("streamtype", "data")]),
        ] {
            let packed = deflater.block(&headers).unwrap();
            assert_eq!(inflater.block(&packed).unwrap(), headers);
        }
    }

    #[test]
    fn names_are_found_however_they_are_written_and_values_split() {
        let block = Headers(vec![("a".into(), "1\u{0}2".into())]).encode();
        let headers = Headers::decode(&block).unwrap();
        assert_eq!(headers.0, [("a".into(), "1".into()), ("a".into(), "2".into())]);
        assert_eq!(headers.get("A"), Some("1"));
        assert_eq!(headers.get("b"), None);
    }

    #[test]
    fn bad_blocks_are_refused() {
        for block in [
            &b""[..],
            &[0, 0, 0],
            &[0, 0, 0, 1],
            &[0, 0, 0, 1, 0, 0, 0, 9, b'a'],
            &[0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0, 1],
        ] {
            assert!(matches!(Headers::decode(block), Err(Error::Headers(_))), "{block:?}");
        }
        for packed in [&b"garbage"[..], &[0x78], &[0x78, 0x9c, 0x01, 0, 0]] {
            assert!(Inflater::default().block(packed).is_err(), "{packed:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let headers = Headers::new(&[("a", &"0".repeat(1 << 20))]);
        let mut packed = Vec::with_capacity(1 << 20);
        let mut stream = Deflater::new().unwrap();
        stream.0.compress_vec(&headers.encode(), &mut packed, FlushCompress::Sync).unwrap();
        assert!(packed.len() < 32 << 10, "{}", packed.len());
        assert!(matches!(Inflater::default().block(&packed), Err(Error::Headers("too long"))));
    }
}
