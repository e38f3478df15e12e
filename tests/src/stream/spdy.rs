//! SPDY/3.1, the client's side.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::upgrade;

const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415\
416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request\
401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented\
503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, \
Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut all = Vec::new();
    for word in WORDS.split_whitespace().map(|word| word.replace('_', " ")) {
        all.extend((word.len() as u32).to_be_bytes());
        all.extend(word.into_bytes());
    }
    [&all, REST.as_bytes()].concat()
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream was accepted.
    Reply(u32),
    /// Its bytes.
    Data {
        /// The stream.
        stream: u32,
        /// The bytes.
        bytes: Vec<u8>,
        /// The last ones.
        fin: bool,
    },
    /// It was ended at once.
    Reset {
        /// The stream.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// An answer to a ping.
    Ping(u32),
    /// No more streams are taken.
    GoAway,
    /// More may be sent.
    Window(u32, u32),
}

/// Where SPDY's bytes go: a socket, or a tunnel.
pub trait Pipe: Read + Write + Send {}
impl<T: Read + Write + Send> Pipe for T {}

/// A connection.
pub struct Spdy {
    pipe: Box<dyn Pipe>,
    deflate: Compress,
    inflate: Decompress,
    next: u32,
}

impl Spdy {
    /// Over a socket.
    pub fn open(mut socket: TcpStream, path: &str, versions: &[&str]) -> Result<Self> {
        let mut headers = vec![("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")];
        headers.extend(versions.iter().map(|v| ("X-Stream-Protocol-Version", *v)));
        let answer = upgrade(&mut socket, path, &headers)?;
        ensure!(answer.code == 101, "{}", answer.head);
        ensure!(answer.head.contains("upgrade: spdy/3.1\r\n"), "{}", answer.head);
        if let Some(first) = versions.first() {
            let named = format!("x-stream-protocol-version: {first}\r\n");
            ensure!(answer.head.contains(&named), "{}", answer.head);
        }
        Self::over(Box::new(socket))
    }

    /// Over anything.
    pub fn over(pipe: Box<dyn Pipe>) -> Result<Self> {
        let mut deflate = Compress::new(Compression::default(), true);
        deflate.set_dictionary(&dictionary())?;
        Ok(Self { pipe, deflate, inflate: Decompress::new(true), next: 1 })
    }

    /// Opens a stream.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend((part.len() as u32).to_be_bytes());
            block.extend(part.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 256);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync)?;
        let stream = self.next;
        self.next += 2;
        let body = [&stream.to_be_bytes()[..], &[0; 6], &packed].concat();
        self.control(1, &body)?;
        Ok(stream)
    }

    /// Sends a stream's bytes.
    pub fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) -> Result<()> {
        let flags = if fin { 1 << 24 } else { 0 };
        let length = bytes.len() as u32 | flags;
        self.pipe.write_all(&[stream.to_be_bytes(), length.to_be_bytes()].concat())?;
        self.pipe.write_all(bytes)?;
        Ok(self.pipe.flush()?)
    }

    /// Sends a control frame.
    pub fn control(&mut self, kind: u16, body: &[u8]) -> Result<()> {
        let head =
            [(0x8003_u32 << 16 | u32::from(kind)).to_be_bytes(), (body.len() as u32).to_be_bytes()];
        self.pipe.write_all(&[&head.concat(), body].concat())?;
        Ok(self.pipe.flush()?)
    }

    /// What comes next. `None`: the connection ended.
    pub fn next(&mut self) -> Result<Option<Event>> {
        loop {
            let Some((first, flags, length)) = self.head()? else { return Ok(None) };
            let mut body = vec![0; length];
            self.pipe.read_exact(&mut body)?;
            if first & 0x8000_0000 == 0 {
                return Ok(Some(Event::Data { stream: first, bytes: body, fin: flags & 1 == 1 }));
            }
            let word = |at: usize| -> Result<u32> {
                Ok(u32::from_be_bytes(body.get(at..at + 4).context("a word")?.try_into()?))
            };
            return Ok(Some(match first & 0xffff {
                2 => {
                    let mut plain = Vec::with_capacity(4096);
                    let packed = body.get(4..).context("headers")?;
                    if self
                        .inflate
                        .decompress_vec(packed, &mut plain, FlushDecompress::Sync)
                        .is_err()
                    {
                        self.inflate.set_dictionary(&dictionary())?;
                        let taken = self.inflate.total_in() as usize;
                        self.inflate.decompress_vec(
                            &packed[taken..],
                            &mut plain,
                            FlushDecompress::Sync,
                        )?;
                    }
                    ensure!(plain == [0; 4], "a reply with headers: {plain:?}");
                    Event::Reply(word(0)?)
                }
                3 => Event::Reset { stream: word(0)?, status: word(4)? },
                6 => Event::Ping(word(0)?),
                7 => Event::GoAway,
                9 => Event::Window(word(0)?, word(4)?),
                _ => continue,
            }));
        }
    }

    fn head(&mut self) -> Result<Option<(u32, u8, usize)>> {
        let mut head = [0; 8];
        let mut got = 0;
        while got < 8 {
            match self.pipe.read(&mut head[got..]) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => anyhow::bail!("the connection ends within a frame"),
                Ok(count) => got += count,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let [a, b, c, d, flags, x, y, z] = head;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        Ok(Some((u32::from_be_bytes([a, b, c, d]), flags, length)))
    }

    /// Takes all that comes and counts a stream's bytes, without keeping them.
    pub fn drain(&mut self, stream: u32) -> Result<u64> {
        let mut buffer = vec![0; 1 << 20];
        let mut count = 0;
        while let Some((first, flags, length)) = self.head()? {
            let mut left = length;
            while left > 0 {
                let room = left.min(buffer.len());
                let got = self.pipe.read(&mut buffer[..room])?;
                ensure!(got > 0, "the connection ends within a frame");
                left -= got;
            }
            if first == stream {
                count += length as u64;
                if flags & 1 == 1 {
                    break;
                }
            }
        }
        Ok(count)
    }
}
