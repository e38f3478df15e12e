//! Frames: an incremental parser that does no I/O, and the bytes of those that we send.
//!
//! Data frames are handed on as they come, in pieces, whatever length they announce; a control
//! frame is kept until it is whole, and may not be long.

use bytes::{Buf, Bytes, BytesMut};

use super::Error;
use super::headers::{Deflater, Headers, Inflater};

/// Bytes of a control frame at most.
const MAX_CONTROL: usize = 64 << 10;
/// The highest value of the 31-bit fields.
const MAX_31: u32 = 0x7fff_ffff;
const CONTROL: u32 = 0x8000_0000;
const VERSION: u32 = 3;
const FIN: u8 = 1;
const HEAD: usize = 8;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    /// The peer broke a rule.
    Protocol = 1,
    /// Data for a stream that is not open.
    InvalidStream = 2,
    /// It was not wanted, and nothing was done.
    Refused = 3,
    /// It is not needed any more.
    Cancel = 5,
    /// A window overflowed.
    FlowControl = 7,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A stream is opened.
    SynStream {
        /// Its number: odd, from the client.
        stream: u32,
        /// Nothing will come on it.
        fin: bool,
        /// What it is for.
        headers: Headers,
    },
    /// A stream that we opened is accepted.
    SynReply {
        /// Its number.
        stream: u32,
        /// Nothing will come on it.
        fin: bool,
    },
    /// A piece of a stream's data.
    Data {
        /// Its number.
        stream: u32,
        /// The bytes, maybe none.
        bytes: Bytes,
        /// It was the last.
        fin: bool,
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// Nothing more will come on it.
        fin: bool,
    },
    /// A stream ended at once, in both directions.
    RstStream {
        /// Its number.
        stream: u32,
        /// The status, as it came.
        status: u32,
    },
    /// The peer takes so much more of a stream. 0: of all together.
    WindowUpdate {
        /// Its number.
        stream: u32,
        /// Bytes.
        delta: u32,
    },
    /// The peer's settings. Some: the window that its streams begin with.
    Settings {
        /// Bytes.
        initial_window: Option<u32>,
    },
    /// To be sent back if its number is the peer's.
    Ping(u32),
    /// The peer opens no more streams.
    GoAway,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Head,
    Data { stream: u32, left: usize, fin: bool },
    Control { kind: u16, fin: bool, length: usize },
    Skip { left: usize },
}

/// Frames from bytes, whatever pieces these come in.
#[derive(Debug)]
pub struct Parser {
    state: State,
    inflater: Inflater,
}

impl Default for Parser {
    fn default() -> Self {
        Self { state: State::Head, inflater: Inflater::default() }
    }
}

impl Parser {
    /// Takes the next frame off the front of `input`. `None`: more bytes are needed. After an
    /// error the connection cannot be understood any more.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        loop {
            match self.state {
                State::Head => {
                    let Some(head) = input.first_chunk::<HEAD>().copied() else { return Ok(None) };
                    input.advance(HEAD);
                    self.state = begin(head)?;
                }
                State::Skip { left } => {
                    let take = left.min(input.len());
                    input.advance(take);
                    if take < left {
                        self.state = State::Skip { left: left - take };
                        return Ok(None);
                    }
                    self.state = State::Head;
                }
                State::Data { stream, left, fin } => {
                    if input.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    let take = left.min(input.len());
                    let bytes = input.split_to(take).freeze();
                    let whole = take == left;
                    self.state = if whole {
                        State::Head
                    } else {
                        State::Data { stream, left: left - take, fin }
                    };
                    return Ok(Some(Frame::Data { stream, bytes, fin: fin && whole }));
                }
                State::Control { kind, fin, length } => {
                    if input.len() < length {
                        return Ok(None);
                    }
                    let body = input.split_to(length);
                    self.state = State::Head;
                    if let Some(frame) = self.control(kind, fin, &body)? {
                        return Ok(Some(frame));
                    }
                }
            }
        }
    }

    fn control(&mut self, kind: u16, fin: bool, body: &[u8]) -> Result<Option<Frame>, Error> {
        let mut body = body;
        let frame = match kind {
            kind::SYN_STREAM => {
                let stream = stream_id(&mut body)?;
                // The stream it belongs to, its priority, its slot.
                body = body.get(6..).ok_or(Error::Short)?;
                Frame::SynStream { stream, fin, headers: self.inflater.block(body)? }
            }
            kind::SYN_REPLY | kind::HEADERS => {
                let stream = stream_id(&mut body)?;
                // Also what nobody reads belongs to the zlib stream.
                self.inflater.block(body)?;
                if kind == kind::HEADERS {
                    Frame::Headers { stream, fin }
                } else {
                    Frame::SynReply { stream, fin }
                }
            }
            kind::RST_STREAM => {
                Frame::RstStream { stream: stream_id(&mut body)?, status: word(&mut body)? }
            }
            kind::WINDOW_UPDATE => {
                let stream = word(&mut body)? & MAX_31;
                Frame::WindowUpdate { stream, delta: word(&mut body)? & MAX_31 }
            }
            kind::SETTINGS => settings(body)?,
            kind::PING => Frame::Ping(word(&mut body)?),
            kind::GOAWAY => Frame::GoAway,
            // Unknown ones are ignored (2.2.1); they were not kept at all.
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn begin(head: [u8; HEAD]) -> Result<State, Error> {
    let [a, b, c, d, flags, x, y, z] = head;
    let first = u32::from_be_bytes([a, b, c, d]);
    let length = u32::from_be_bytes([0, x, y, z]);
    let length = usize::try_from(length).map_err(|_| Error::Long)?;
    let fin = flags & FIN != 0;
    if first & CONTROL == 0 {
        return match first {
            0 => Err(Error::StreamZero),
            stream => Ok(State::Data { stream, left: length, fin }),
        };
    }
    if (first >> 16) & 0x7fff != VERSION {
        return Err(Error::Version((first >> 16) & 0x7fff));
    }
    let kind = u16::from_be_bytes([c, d]);
    match kind {
        kind::SYN_STREAM..=kind::SETTINGS | kind::PING..=kind::WINDOW_UPDATE => {
            if length > MAX_CONTROL {
                return Err(Error::Long);
            }
            Ok(State::Control { kind, fin, length })
        }
        _ => Ok(State::Skip { left: length }),
    }
}

fn word(body: &mut &[u8]) -> Result<u32, Error> {
    let (bytes, rest) = body.split_first_chunk().ok_or(Error::Short)?;
    *body = rest;
    Ok(u32::from_be_bytes(*bytes))
}

fn stream_id(body: &mut &[u8]) -> Result<u32, Error> {
    match word(body)? & MAX_31 {
        0 => Err(Error::StreamZero),
        stream => Ok(stream),
    }
}

fn settings(mut body: &[u8]) -> Result<Frame, Error> {
    const INITIAL_WINDOW: u32 = 7;
    let mut initial_window = None;
    let _count = word(&mut body)?;
    while !body.is_empty() {
        let (id, value) = (word(&mut body)? & 0xff_ffff, word(&mut body)?);
        if id == INITIAL_WINDOW {
            initial_window = Some(value & MAX_31);
        }
    }
    Ok(Frame::Settings { initial_window })
}

fn control(kind: u16, flags: u8, body: &[&[u8]]) -> Bytes {
    let length: usize = body.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&(CONTROL | VERSION << 16 | u32::from(kind)).to_be_bytes());
    frame.extend_from_slice(&length_word(flags, length));
    for part in body {
        frame.extend_from_slice(part);
    }
    frame.into()
}

fn length_word(flags: u8, length: usize) -> [u8; 4] {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0xff_ffff;
    (u32::from(flags) << 24 | length).to_be_bytes()
}

/// The head of a data frame; its bytes (less than 16 MiB) follow it.
#[must_use]
pub fn data_head(stream: u32, length: usize, fin: bool) -> [u8; HEAD] {
    let [a, b, c, d] = (stream & MAX_31).to_be_bytes();
    let [w, x, y, z] = length_word(if fin { FIN } else { 0 }, length);
    [a, b, c, d, w, x, y, z]
}

/// Opens a stream.
pub fn syn_stream(
    stream: u32,
    fin: bool,
    headers: &Headers,
    deflater: &mut Deflater,
) -> Result<Bytes, Error> {
    let block = deflater.block(headers)?;
    let flags = if fin { FIN } else { 0 };
    Ok(control(kind::SYN_STREAM, flags, &[&(stream & MAX_31).to_be_bytes(), &[0; 6], &block]))
}

/// Accepts a stream.
pub fn syn_reply(stream: u32, deflater: &mut Deflater) -> Result<Bytes, Error> {
    let block = deflater.block(&Headers::default())?;
    Ok(control(kind::SYN_REPLY, 0, &[&(stream & MAX_31).to_be_bytes(), &block]))
}

/// Ends a stream at once.
#[must_use]
pub fn rst_stream(stream: u32, why: Reset) -> Bytes {
    control(kind::RST_STREAM, 0, &[&(stream & MAX_31).to_be_bytes(), &(why as u32).to_be_bytes()])
}

/// Takes so many more bytes of a stream, or (0) of all.
#[must_use]
pub fn window_update(stream: u32, delta: u32) -> Bytes {
    control(
        kind::WINDOW_UPDATE,
        0,
        &[&(stream & MAX_31).to_be_bytes(), &(delta & MAX_31).to_be_bytes()],
    )
}

/// Asks whether the peer is there, or answers that.
#[must_use]
pub fn ping(id: u32) -> Bytes {
    control(kind::PING, 0, &[&id.to_be_bytes()])
}

/// No more streams are taken.
#[must_use]
pub fn goaway(last: u32) -> Bytes {
    control(kind::GOAWAY, 0, &[&(last & MAX_31).to_be_bytes(), &0_u32.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(parser: &mut Parser, bytes: &[u8]) -> Result<Vec<Frame>, Error> {
        let mut input = BytesMut::from(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = parser.next(&mut input)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn data(stream: u32, bytes: &'static [u8], fin: bool) -> Vec<u8> {
        [&data_head(stream, bytes.len(), fin)[..], bytes].concat()
    }

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let mut deflater = Deflater::new().unwrap();
        let headers = Headers::new(&[("streamtype", "stdin")]);
        let mut bytes = syn_stream(5, true, &headers, &mut deflater).unwrap().to_vec();
        bytes.extend(syn_reply(7, &mut deflater).unwrap());
        bytes.extend(data(5, b"hello", false));
        bytes.extend(rst_stream(5, Reset::Refused));
        bytes.extend(window_update(0, 99));
        bytes.extend(ping(3));
        bytes.extend(goaway(1));
        bytes.extend(data(9, b"", true));
        let hello = Bytes::from_static(b"hello");
        let want = [
            Frame::SynStream { stream: 5, fin: true, headers },
            Frame::SynReply { stream: 7, fin: false },
            Frame::Data { stream: 5, bytes: hello, fin: false },
            Frame::RstStream { stream: 5, status: 3 },
            Frame::WindowUpdate { stream: 0, delta: 99 },
            Frame::Ping(3),
            Frame::GoAway,
            Frame::Data { stream: 9, bytes: Bytes::new(), fin: true },
        ];
        assert_eq!(all(&mut Parser::default(), &bytes).unwrap(), want);
        // Byte by byte, too; data is then handed on in pieces.
        let (mut parser, mut input) = (Parser::default(), BytesMut::new());
        let mut count = 0;
        for byte in &bytes {
            input.extend_from_slice(&[*byte]);
            while parser.next(&mut input).unwrap().is_some() {
                count += 1;
            }
        }
        assert_eq!(count, want.len() + 4);
    }

    #[test]
    fn data_of_any_length_is_handed_on_in_pieces() {
        let mut parser = Parser::default();
        let head = data_head(1, 0xff_ffff, true);
        assert_eq!(all(&mut parser, &head).unwrap(), []);
        let half = vec![7; 0x80_0000];
        let Frame::Data { bytes, fin, .. } = all(&mut parser, &half).unwrap().remove(0) else {
            panic!("no data");
        };
        assert_eq!((bytes.len(), fin), (0x80_0000, false));
        let Frame::Data { fin, .. } = all(&mut parser, &half[1..]).unwrap().remove(0) else {
            panic!("no data");
        };
        assert!(fin);
        assert_eq!(all(&mut parser, &ping(1)).unwrap(), [Frame::Ping(1)]);
    }

    #[test]
    fn settings_and_unknown_frames() {
        let settings = [0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 0];
        let unknown = [0x80, 3, 0, 99, 0, 0, 0, 2, 1, 2];
        let bytes = [&settings[..], &unknown, &ping(1)].concat();
        let want = [Frame::Settings { initial_window: Some(65536) }, Frame::Ping(1)];
        assert_eq!(all(&mut Parser::default(), &bytes).unwrap(), want);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases: &[&[u8]] = &[
            // A data frame of stream 0.
            &[0, 0, 0, 0, 0, 0, 0, 0],
            // SPDY/2.
            &[0x80, 2, 0, 1, 0, 0, 0, 0],
            // A control frame that is too long, and ones that are too short.
            &[0x80, 3, 0, 1, 0, 0xff, 0, 0],
            &[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0],
            &[0x80, 3, 0, 6, 0, 0, 0, 0],
            &[0x80, 3, 0, 4, 0, 0, 0, 5, 0, 0, 0, 1, 0],
            // A stream of number 0 is opened; one with rubbish for headers.
            &[0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x80, 3, 0, 1, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9],
        ];
        for bytes in cases {
            assert!(all(&mut Parser::default(), bytes).is_err(), "{bytes:?}");
        }
    }
}
