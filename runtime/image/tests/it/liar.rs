//! A registry that lies: each path has its scripted answer.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use crate::images::{Blob, TestImage};

/// Makes an answer of a request: its line and headers, in lower case, and its body.
type Reply = Arc<dyn Fn(&str, &[u8]) -> Answer + Send + Sync>;

#[derive(Clone)]
pub(crate) enum Answer {
    /// It depends on the request.
    Call(Reply),
    /// As `Body`, but the connection closes after so many bytes of it.
    CutBody { status: &'static str, headers: String, bytes: Vec<u8>, after: usize },
    /// So many bytes, then a pause, and so on.
    Drip { bytes: Vec<u8>, step: usize, pause: std::time::Duration },
    /// An honest one, with further header lines.
    Body { status: &'static str, headers: String, bytes: Vec<u8> },
    /// The connection closes before the announced length.
    Cut { announced: usize, bytes: Vec<u8> },
    /// Chunk after chunk, for ever.
    Endless,
    /// The beginning, and then nothing, with the connection open.
    Stall(Vec<u8>),
}

impl Answer {
    pub(crate) fn blob(bytes: &[u8]) -> Self {
        let headers = "content-type: application/octet-stream\r\n".to_owned();
        Self::Body { status: "200 OK", headers, bytes: bytes.to_vec() }
    }

    pub(crate) fn manifest(blob: &Blob) -> Self {
        let (kind, digest) = (&blob.media_type, blob.digest());
        let headers = format!("content-type: {kind}\r\ndocker-content-digest: {digest}\r\n");
        Self::Body { status: "200 OK", headers, bytes: blob.bytes.clone() }
    }

    pub(crate) fn call(reply: impl Fn(&str, &[u8]) -> Self + Send + Sync + 'static) -> Self {
        Self::Call(Arc::new(reply))
    }

    pub(crate) fn status(status: &'static str, headers: &str) -> Self {
        Self::Body { status, headers: headers.to_owned(), bytes: Vec::new() }
    }

    pub(crate) fn json(value: &serde_json::Value) -> Self {
        let headers = "content-type: application/json\r\n".to_owned();
        Self::Body { status: "200 OK", headers, bytes: serde_json::to_vec(value).unwrap() }
    }

    /// The range that the request asks for, else all; the connection closes after `cut` bytes of
    /// it if it has more.
    pub(crate) fn range(request: &str, bytes: &[u8], etag: &str, cut: usize) -> Self {
        let size = bytes.len();
        let asked = field(request, "range").and_then(|range| {
            let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((from.parse::<usize>().ok()?, to.parse::<usize>().unwrap_or(size - 1)))
        });
        let fits = field(request, "if-range").is_none_or(|wanted| wanted == etag);
        let (status, headers, bytes) = match asked.filter(|_| fits) {
            Some((from, to)) => {
                let headers =
                    format!("content-range: bytes {from}-{to}/{size}\r\netag: {etag}\r\n");
                ("206 Partial Content", headers, bytes[from..=to].to_vec())
            }
            None => ("200 OK", format!("etag: {etag}\r\n"), bytes.to_vec()),
        };
        Self::CutBody { status, headers, bytes, after: cut }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        let headers = format!("location: {to}\r\n");
        Self::Body { status: "307 Temporary Redirect", headers, bytes: Vec::new() }
    }
}

/// A header of a request in lower case.
pub(crate) fn field<'a>(request: &'a str, name: &str) -> Option<&'a str> {
    request.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<String, Answer>>,
    /// All requests seen: request line and headers, in lower case.
    requests: Mutex<Vec<String>>,
    over: AtomicBool,
    ended: (Mutex<bool>, Condvar),
}

/// Ends when dropped.
pub(crate) struct Liar {
    pub(crate) address: String,
    script: Arc<Script>,
    listening: Option<JoinHandle<()>>,
}

impl Liar {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let script = Arc::new(Script::default());
        let shared = script.clone();
        let listening = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, script) = (stream.unwrap(), shared.clone());
                // A client that went away in the middle is part of the game.
                std::thread::spawn(move || script.serve(&stream).ok());
            }
        });
        Self { address, script, listening: Some(listening) }
    }

    /// Serves this image honestly, as `x/y:tag`.
    pub(crate) fn honest(&self, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.blob(blob, Answer::blob(&blob.bytes));
        }
        self.tag(tag, Answer::manifest(&image.manifest));
        self.tag(image.manifest.digest().as_str(), Answer::manifest(&image.manifest));
    }

    pub(crate) fn tag(&self, tag: &str, answer: Answer) {
        self.path(&format!("/v2/x/y/manifests/{tag}"), answer);
    }

    pub(crate) fn blob(&self, blob: &Blob, answer: Answer) {
        self.path(&format!("/v2/x/y/blobs/{}", blob.digest()), answer);
    }

    pub(crate) fn path(&self, path: &str, answer: Answer) {
        self.script.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub(crate) fn name(&self, tag: &str) -> String {
        format!("{}/x/y:{tag}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.script.requests.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.contains(part)).count()
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.script.over.store(true, Ordering::SeqCst);
        *self.script.ended.0.lock().unwrap() = true;
        self.script.ended.1.notify_all();
        let _ = TcpStream::connect(&self.address);
        let _ = self.listening.take().map(JoinHandle::join);
    }
}

impl Script {
    fn serve(&self, stream: &TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut request = String::new();
            while !request.ends_with("\r\n\r\n") {
                if reader.read_line(&mut request)? == 0 {
                    return Ok(());
                }
            }
            let path = request.split(' ').nth(1).unwrap_or("");
            // As a proxy it is sent whole URLs.
            let path = path
                .strip_prefix("http://")
                .map_or(path, |rest| rest.find('/').map_or("", |slash| &rest[slash..]));
            let path = path.split('?').next().unwrap_or("").to_owned();
            let request = request.to_ascii_lowercase();
            let length = field(&request, "content-length").map_or(0, |n| n.parse().unwrap());
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            self.requests.lock().unwrap().push(request.clone());
            let answer = self.answers.lock().unwrap().get(&path).cloned();
            let not_found = Answer::Body {
                status: "404 Not Found",
                headers: String::new(),
                bytes: br#"{"errors":[{"code":"GONE","message":"not here"}]}"#.to_vec(),
            };
            let mut answer = answer.unwrap_or(not_found);
            while let Answer::Call(reply) = &answer {
                answer = reply(&request, &body);
            }
            if !self.answer(stream, answer)? {
                return Ok(());
            }
        }
    }

    /// Whether the connection is still good.
    fn answer(&self, mut stream: &TcpStream, answer: Answer) -> std::io::Result<bool> {
        match answer {
            Answer::Call(_) => unreachable!("called before"),
            Answer::CutBody { status, headers, bytes, after } => {
                let length = bytes.len();
                write!(stream, "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n")?;
                stream.write_all(&bytes[..after.min(length)])?;
                Ok(after >= length)
            }
            Answer::Drip { bytes, step, pause } => {
                let length = bytes.len();
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n")?;
                for piece in bytes.chunks(step) {
                    stream.write_all(piece)?;
                    let ended = self.ended.0.lock().unwrap();
                    let (ended, _) = self.ended.1.wait_timeout(ended, pause).unwrap();
                    if *ended {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Answer::Body { status, headers, bytes } => {
                let length = bytes.len();
                write!(stream, "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n")?;
                stream.write_all(&bytes)?;
                Ok(true)
            }
            Answer::Cut { announced, bytes } => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {announced}\r\n\r\n")?;
                stream.write_all(&bytes)?;
                Ok(false)
            }
            Answer::Endless => {
                write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                let chunk = [b"1000\r\n", &[b'x'; 0x1000][..], b"\r\n"].concat();
                loop {
                    stream.write_all(&chunk)?;
                }
            }
            Answer::Stall(bytes) => {
                write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                if !bytes.is_empty() {
                    write!(stream, "{:x}\r\n", bytes.len())?;
                    stream.write_all(&bytes)?;
                    stream.write_all(b"\r\n")?;
                }
                let mut ended = self.ended.0.lock().unwrap();
                while !*ended {
                    ended = self.ended.1.wait(ended).unwrap();
                }
                Ok(false)
            }
        }
    }
}
