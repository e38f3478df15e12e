//! Frames: a header of 10 bytes, then the payload.
//!
//! ```text
//! 0        4          8      9       10
//! | length | stream id | type | flags | payload ...      (numbers big-endian)
//! ```
//! <https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md>

use prost::Message;

/// Bytes of a header.
pub(crate) const HEADER_LEN: usize = 10;
/// The longest payload that either side takes.
pub(crate) const MAX_PAYLOAD: usize = 4 << 20;

const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;
/// What is set aside on a header's word alone: a header may lie.
const FIRST_RESERVE: usize = 64 << 10;

/// One whole thing that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A request's payload.
    Request {
        /// The client's number for this call.
        stream: u32,
        /// An encoded [`Request`](super::message::Request).
        payload: Vec<u8>,
    },
    /// A request longer than [`MAX_PAYLOAD`]; its payload was read and dropped.
    Oversize {
        /// The client's number for this call.
        stream: u32,
        /// What the header said.
        length: usize,
    },
    /// A frame of a type that this server does not take (streams); read and dropped.
    Unsupported {
        /// The client's number for this call.
        stream: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    stream: u32,
    kind: u8,
}

impl Header {
    fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, _flags] = bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        Self {
            // A u32 fits in usize on every target that Linux containers run on.
            length: usize::try_from(length).unwrap_or(usize::MAX),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
        }
    }

    fn kept(self) -> bool {
        self.kind == TYPE_REQUEST && self.length <= MAX_PAYLOAD
    }

    fn finish(self, payload: Vec<u8>) -> Frame {
        if self.kind != TYPE_REQUEST {
            Frame::Unsupported { stream: self.stream }
        } else if self.length > MAX_PAYLOAD {
            Frame::Oversize { stream: self.stream, length: self.length }
        } else {
            Frame::Request { stream: self.stream, payload }
        }
    }
}

/// Puts frames together from bytes as they come.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    head: [u8; HEADER_LEN],
    head_len: usize,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    header: Header,
    missing: usize,
    payload: Vec<u8>,
}

impl Decoder {
    /// Takes bytes from the front of `input`, which moves on past them. `Some`: a frame is
    /// whole, call again with the rest. `None`: all of `input` was taken.
    pub(crate) fn feed(&mut self, input: &mut &[u8]) -> Option<Frame> {
        if self.body.is_none() {
            let header = self.feed_header(input)?;
            let reserve = if header.kept() { header.length.min(FIRST_RESERVE) } else { 0 };
            self.body =
                Some(Body { header, missing: header.length, payload: Vec::with_capacity(reserve) });
        }
        let body = self.body.as_mut()?;
        let (taken, rest) = input.split_at(body.missing.min(input.len()));
        *input = rest;
        body.missing -= taken.len();
        if body.header.kept() {
            body.payload.extend_from_slice(taken);
        }
        if body.missing > 0 {
            return None;
        }
        self.body.take().map(|body| body.header.finish(body.payload))
    }

    fn feed_header(&mut self, input: &mut &[u8]) -> Option<Header> {
        let wanted = self.head.get_mut(self.head_len..)?;
        let count = wanted.len().min(input.len());
        let (taken, rest) = input.split_at(count);
        wanted.get_mut(..count)?.copy_from_slice(taken);
        *input = rest;
        self.head_len += count;
        if self.head_len < HEADER_LEN {
            return None;
        }
        self.head_len = 0;
        Some(Header::parse(self.head))
    }
}

/// A whole response frame. `Err`: the message's length, which is over [`MAX_PAYLOAD`].
pub(crate) fn encode_response(stream: u32, message: &impl Message) -> Result<Vec<u8>, usize> {
    let payload_len = message.encoded_len();
    let length = u32::try_from(payload_len).map_err(|_| payload_len)?;
    if payload_len > MAX_PAYLOAD {
        return Err(payload_len);
    }
    let mut frame = Vec::with_capacity(HEADER_LEN + payload_len);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[TYPE_RESPONSE, 0]);
    // Fails only where room is short, which a Vec makes.
    message.encode(&mut frame).map_err(|_| payload_len)?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 0]);
        bytes.extend(payload);
        bytes
    }

    fn feed_all(decoder: &mut Decoder, mut input: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.feed(&mut input) {
            frames.push(frame);
        }
        assert!(input.is_empty(), "bytes were left");
        frames
    }

    /// A small generator of our own (xorshift), so that a failure can be repeated by its seed.
    struct Random(u64);
    impl Random {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % u64::try_from(below).unwrap()).unwrap()
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_are_cut() {
        for seed in 1..300 {
            let mut random = Random(seed);
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for number in 0..u32::try_from(random.next(12)).unwrap() {
                let payload: Vec<u8> = (0..random.next(3000))
                    .map(|_| u8::try_from(random.next(256)).unwrap())
                    .collect();
                let kind = [1, 1, 1, 2, 3, 0xff][random.next(6)];
                stream.extend(frame(number, kind, &payload));
                expected.push(match kind {
                    1 => Frame::Request { stream: number, payload },
                    _ => Frame::Unsupported { stream: number },
                });
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.next(rest.len().min(700)) + 1);
                got.extend(feed_all(&mut decoder, now));
                rest = later;
            }
            assert_eq!(got, expected, "seed {seed}");
        }
    }

    #[test]
    fn any_bytes_at_all_are_taken_without_harm_or_much_memory() {
        for seed in 1..2000 {
            let mut random = Random(seed);
            let noise: Vec<u8> =
                (0..random.next(400)).map(|_| u8::try_from(random.next(256)).unwrap()).collect();
            let mut decoder = Decoder::default();
            feed_all(&mut decoder, &noise);
            if let Some(body) = &decoder.body {
                assert!(body.payload.capacity() <= FIRST_RESERVE, "seed {seed}");
            }
        }
    }

    #[test]
    fn an_oversize_request_is_told_by_its_stream_and_the_next_is_read() {
        let mut bytes = frame(5, 1, &vec![7; MAX_PAYLOAD + 1]);
        bytes.extend(frame(7, 1, b"next"));
        let frames = feed_all(&mut Decoder::default(), &bytes);
        assert_eq!(
            frames,
            [
                Frame::Oversize { stream: 5, length: MAX_PAYLOAD + 1 },
                Frame::Request { stream: 7, payload: b"next".to_vec() }
            ]
        );
    }

    #[test]
    fn the_longest_payload_and_the_empty_one_are_taken() {
        let longest = vec![1; MAX_PAYLOAD];
        let mut bytes = frame(1, 1, &longest);
        bytes.extend(frame(3, 1, b""));
        let frames = feed_all(&mut Decoder::default(), &bytes);
        assert_eq!(
            frames,
            [
                Frame::Request { stream: 1, payload: longest },
                Frame::Request { stream: 3, payload: Vec::new() }
            ]
        );
    }

    #[test]
    fn a_response_has_the_shape_of_the_protocol() {
        // An integer is a message too: google.protobuf.UInt32Value.
        assert_eq!(
            encode_response(0x0102_0304, &7_u32).unwrap(),
            [0, 0, 0, 2, 1, 2, 3, 4, 2, 0, 8, 7]
        );
        let long = "x".repeat(MAX_PAYLOAD);
        assert_eq!(encode_response(1, &long), Err(long.encoded_len()));
    }
}
