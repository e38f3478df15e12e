//! A real docker-registry process on a free loopback port, and pushing to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::images::{Blob, TestImage};

/// Of `secret-word`, by bcrypt.
const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuUOabO4v2PoT/v47Y.znQK.9MsMDnesq";

/// Killed and removed when dropped.
pub(crate) struct Registry {
    process: Child,
    pub(crate) address: String,
    dir: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Over plain HTTP.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        Self::run(dir, &data, "")
    }

    /// Another process with the same images, over HTTPS with `server.pem` and `server.key` of
    /// the directory `certs`.
    pub(crate) fn over_tls(&self, certs: &Path) -> Self {
        let file = |name| certs.join(name).display().to_string();
        let (certificate, key) = (file("server.pem"), file("server.key"));
        let tls = format!("  tls: {{certificate: {certificate}, key: {key}}}\n");
        Self::run(tempfile::tempdir().unwrap(), &self.dir.path().join("data"), &tls)
    }

    /// As [`over_tls`](Self::over_tls), for clients that `ca.pem` vouches for.
    pub(crate) fn over_mutual_tls(&self, certs: &Path) -> Self {
        let file = |name| certs.join(name).display().to_string();
        let (certificate, key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
        let tls = format!("  tls: {{certificate: {certificate}, key: {key}, clientcas: [{ca}]}}\n");
        Self::run(tempfile::tempdir().unwrap(), &self.dir.path().join("data"), &tls)
    }

    /// Another process with the same images, which lets in `user` with `secret-word`.
    pub(crate) fn with_password(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("htpasswd");
        // bcrypt, the only form that the registry takes.
        std::fs::write(&file, format!("user:{PASSWORD_HASH}\n")).unwrap();
        let auth = format!("auth:\n  htpasswd: {{realm: berth, path: {}}}\n", file.display());
        Self::run(dir, &self.dir.path().join("data"), &auth)
    }

    fn run(dir: TempDir, data: &Path, options: &str) -> Self {
        let config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\nstorage:\n  filesystem: \
             {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:0\n{options}",
            data.display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Debian's docker-registry is installed");
        let address = listening_on(&mut process);
        Self { process, address, dir }
    }

    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, image.manifest.digest().as_str(), &image.manifest);
        self.push_manifest(repository, tag, &image.manifest);
    }

    pub(crate) fn push_blob(&self, repository: &str, blob: &Blob) {
        let start = format!("POST /v2/{repository}/blobs/uploads/ HTTP/1.1\r\n");
        let (status, head) = self.request(&start, &[], b"");
        assert_eq!(status, 202, "{head}");
        let location = header(&head, "location");
        let path = match location.strip_prefix("http://") {
            Some(rest) => rest.split_once('/').map(|(_, path)| format!("/{path}")).unwrap(),
            None => location,
        };
        let joint = if path.contains('?') { '&' } else { '?' };
        let put = format!("PUT {path}{joint}digest={} HTTP/1.1\r\n", blob.digest());
        let (status, head) =
            self.request(&put, &[("Content-Type", "application/octet-stream")], &blob.bytes);
        assert_eq!(status, 201, "{head}");
    }

    pub(crate) fn push_manifest(&self, repository: &str, reference: &str, manifest: &Blob) {
        let put = format!("PUT /v2/{repository}/manifests/{reference} HTTP/1.1\r\n");
        let headers = [("Content-Type", manifest.media_type.as_str())];
        let (status, head) = self.request(&put, &headers, &manifest.bytes);
        assert_eq!(status, 201, "{head}");
    }

    fn request(&self, start: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let mut head = format!(
            "{start}Host: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.unwrap().split_once(':').unwrap().1.trim().to_owned()
}

/// The registry says where it listens; the rest of its log is read and dropped.
fn listening_on(process: &mut Child) -> String {
    let mut log = BufReader::new(process.stderr.take().unwrap());
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended: {seen}");
        if let Some((_, rest)) = line.split_once("listening on ") {
            let address = rest.split(['"', ',', ' ', '\n']).next().unwrap().to_owned();
            std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
            return address;
        }
        seen.push_str(&line);
    }
}
