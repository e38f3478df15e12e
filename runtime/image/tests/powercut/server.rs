//! A registry that serves the catalog from memory.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use crate::catalog::{Entry, packed};
use crate::images::Blob;

type Answers = HashMap<String, Vec<u8>>;

/// Serves on a loopback port until the process ends; image `n` is `x/y:vN`. Answers the address
/// and the ids.
pub(crate) fn start(catalog: &[Entry]) -> (String, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut answers = Answers::new();
    let mut ids = Vec::new();
    for (n, entry) in (0..).zip(catalog) {
        let image = packed(entry, n);
        for blob in image.layers.iter().chain([&image.config]) {
            answers.insert(format!("/v2/x/y/blobs/{}", blob.digest()), ok(blob));
        }
        for name in [format!("v{n}"), image.manifest.digest().to_string()] {
            answers.insert(format!("/v2/x/y/manifests/{name}"), ok(&image.manifest));
        }
        ids.push(image.id().to_string());
    }
    let answers = Arc::new(answers);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answers = answers.clone();
            // Clients are killed at will.
            std::thread::spawn(move || serve(&stream, &answers).ok());
        }
    });
    (address, ids)
}

fn ok(blob: &Blob) -> Vec<u8> {
    let (kind, length, digest) = (&blob.media_type, blob.bytes.len(), blob.digest());
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
         docker-content-digest: {digest}\r\n\r\n"
    );
    [head.as_bytes(), &blob.bytes].concat()
}

fn serve(stream: &TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        while !request.ends_with("\r\n\r\n") {
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
        }
        let path = request.split(' ').nth(1).unwrap_or("");
        let missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec();
        let mut stream = stream;
        stream.write_all(answers.get(path.split('?').next().unwrap_or("")).unwrap_or(&missing))?;
    }
}
