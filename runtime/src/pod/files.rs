//! The files that a pod's containers find in /etc: hosts, hostname, resolv.conf.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::house::{PodEnv, blocking};
use super::spec::{Dns, Scope};
use super::{Error, Result};

/// The pod's host name: the one asked for, else the host's.
pub(crate) fn hostname(env: &PodEnv) -> String {
    match env.spec.hostname.as_str() {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        asked => asked.to_owned(),
    }
}

/// Writes the three files.
pub(crate) async fn write(env: &PodEnv, ips: &[IpAddr]) -> Result<()> {
    let dir = env.paths.dir().to_owned();
    let name = hostname(env);
    let host_network = env.spec.namespaces.network == Scope::Node;
    let hosts = (!host_network).then(|| hosts(&name, ips));
    let resolver = env.spec.dns.as_ref().filter(|dns| !is_empty(dns)).map(resolv_conf);
    let ids = &env.spec.namespaces.ids;
    let owner = ids.uid(0).zip(ids.gid(0));
    blocking(move || {
        put(&dir, "hostname", &format!("{name}\n"))?;
        put(&dir, "hosts", &hosts.map_or_else(|| host_file("/etc/hosts"), Ok)?)?;
        put(&dir, "resolv.conf", &resolver.map_or_else(|| host_file("/etc/resolv.conf"), Ok)?)?;
        // The pod's root writes them as its own.
        match owner {
            Some(owner) => ["hostname", "hosts", "resolv.conf"]
                .iter()
                .try_for_each(|name| give(&dir.join(name), owner)),
            None => Ok(()),
        }
    })
    .await?
}

fn put(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).map_err(|e| Error::disk("write", path, e))
}

fn give(path: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    let given = std::os::unix::fs::chown(path, Some(uid), Some(gid));
    given.map_err(|e| Error::disk("change the owner of", path, e))
}

fn host_file(path: &str) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::disk("read", path, error)),
    }
}

fn is_empty(dns: &Dns) -> bool {
    dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()
}

fn hosts(name: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{ip}\t{name}");
    }
    text
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_is_spelt_as_the_libc_reads_it() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["default.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search default.svc svc\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&Dns::default()), "");
    }

    #[test]
    fn a_pod_finds_itself_in_hosts() {
        let text = hosts("web-0", &["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()]);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.1.2.3\tweb-0\nfd00::3\tweb-0\n"));
    }
}
