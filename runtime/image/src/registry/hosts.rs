//! Which hosts to ask for a registry: containerd's `hosts.toml`.
//!
//! Format: <https://github.com/containerd/containerd/blob/main/docs/hosts.md>. As there, unknown
//! keys are let pass (with a warning in the log); unknown capabilities are an error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::{Error, connect};

/// One host to ask, mirrors first, the registry itself last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// `https` or `http`, host, and the path up to and with `/v2`: `https://x:5000/v2`.
    pub(super) base: String,
    /// Host and port.
    pub(super) authority: String,
    pub(super) pull: bool,
    pub(super) resolve: bool,
    pub(super) push: bool,
    /// To connect, in place of the node's own.
    pub(super) dial_timeout: Option<Duration>,
    pub(super) skip_verify: bool,
    /// PEM files with further authorities.
    pub(super) ca: Vec<PathBuf>,
    /// PEM files with certificates to show, each with the file of its key.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
    /// Sent with each request.
    pub(super) headers: Vec<(String, String)>,
}

/// The hosts for `registry`, in the order to ask them.
pub(super) fn hosts(config_path: Option<&Path>, registry: &str) -> Result<Vec<Host>, Error> {
    let Some(dir) = config_path.and_then(|root| directory(root, registry)) else {
        return Ok(vec![default_host(registry)]);
    };
    let file = dir.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) => parse(&text, &dir, registry)
            .map_err(|reason| Error::Hosts { path: file.display().to_string(), reason }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => without_file(&dir, registry),
        Err(e) => Err(Error::Hosts { path: file.display().to_string(), reason: e.to_string() }),
    }
}

/// The first that exists of `host_port_`, `host:port` and `_default`.
fn directory(root: &Path, registry: &str) -> Option<PathBuf> {
    let portable = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    [portable.as_deref(), Some(registry), Some("_default")]
        .into_iter()
        .flatten()
        .map(|name| root.join(name))
        .find(|dir| dir.is_dir())
}

/// Docker's older layout: a directory without `hosts.toml` may hold authorities as `*.crt`, and
/// certificates to show as `*.cert` with `*.key`.
fn without_file(dir: &Path, registry: &str) -> Result<Vec<Host>, Error> {
    let entries = std::fs::read_dir(dir)
        .map_err(|e| Error::Hosts { path: dir.display().to_string(), reason: e.to_string() })?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let of = |kind: &'static str| {
        files.iter().filter(move |path| path.extension().is_some_and(|ext| ext == kind)).cloned()
    };
    let client = of("cert").map(|cert| (cert.clone(), cert.with_extension("key"))).collect();
    Ok(vec![Host { ca: of("crt").collect(), client, ..default_host(registry) }])
}

/// The registry itself: https, but http on this machine's own loopback.
fn default_host(registry: &str) -> Host {
    let authority = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let scheme = if is_loopback(authority) { "http" } else { "https" };
    Host {
        base: format!("{scheme}://{authority}/v2"),
        authority: authority.to_owned(),
        pull: true,
        resolve: true,
        push: true,
        dial_timeout: None,
        skip_verify: false,
        ca: Vec::new(),
        client: Vec::new(),
        headers: Vec::new(),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => authority,
    };
    connect::is_loopback(host)
}

pub(super) fn parse(text: &str, dir: &Path, registry: &str) -> Result<Vec<Host>, String> {
    let root: Table = toml::from_str(text).map_err(|e| e.to_string())?;
    let mut hosts = Vec::new();
    for (name, value) in table(&root, "host")?.into_iter().flatten() {
        let settings = value.as_table().ok_or_else(|| format!("host.{name:?} is not a table"))?;
        warn_unknown(settings, &[], dir);
        let host = host(name, settings, dir).map_err(|e| format!("host.{name:?}: {e}"))?;
        hosts.push(host);
    }
    warn_unknown(&root, &["server", "host"], dir);
    let server = match string(&root, "server")? {
        Some(server) if !server.is_empty() => server.to_owned(),
        _ => default_host(registry).base.trim_end_matches("/v2").to_owned(),
    };
    hosts.push(host(&server, &root, dir).map_err(|e| format!("server {server:?}: {e}"))?);
    Ok(hosts)
}

const HOST_KEYS: &[&str] =
    &["capabilities", "skip_verify", "ca", "override_path", "header", "client", "dial_timeout"];

fn warn_unknown(settings: &Table, further: &[&str], dir: &Path) {
    let known = |key: &str| HOST_KEYS.contains(&key) || further.contains(&key);
    for key in settings.keys().filter(|key| !known(key)) {
        tracing::warn!(key, dir = %dir.display(), "hosts.toml has a key that is not used");
    }
}

fn host(address: &str, settings: &Table, dir: &Path) -> Result<Host, String> {
    let (base, authority) = base(address, boolean(settings, "override_path")?)?;
    let [pull, resolve, push] = capabilities(settings)?;
    let rooted = |path: &str| dir.join(path);
    Ok(Host {
        base,
        authority,
        pull,
        resolve,
        push,
        dial_timeout: string(settings, "dial_timeout")?.map(duration).transpose()?,
        skip_verify: boolean(settings, "skip_verify")?,
        ca: strings(settings, "ca")?.iter().map(|ca| rooted(ca)).collect(),
        client: client(settings)?.iter().map(|(c, k)| (rooted(c), rooted(k))).collect(),
        headers: headers(settings)?,
    })
}

/// The base URL: `/v2` is appended unless it is there or the path is to be taken as it is.
fn base(address: &str, override_path: bool) -> Result<(String, String), String> {
    let with_scheme = match address.split_once("://") {
        Some(("http" | "https", _)) => address.to_owned(),
        Some((scheme, _)) => return Err(format!("scheme {scheme:?} is neither http nor https")),
        None if is_loopback(address.split('/').next().unwrap_or_default()) => {
            format!("http://{address}")
        }
        None => format!("https://{address}"),
    };
    let uri: hyper::Uri = with_scheme.parse().map_err(|e| format!("is no URL: {e}"))?;
    let authority = uri.authority().ok_or("has no host")?.to_string();
    let trimmed = with_scheme.trim_end_matches('/');
    let base = if override_path || uri.path().trim_end_matches('/').ends_with("/v2") {
        trimmed.to_owned()
    } else {
        format!("{trimmed}/v2")
    };
    Ok((base, authority))
}

/// Pull, resolve, push; all of them unless some are named.
fn capabilities(settings: &Table) -> Result<[bool; 3], String> {
    let named = strings(settings, "capabilities")?;
    if named.is_empty() {
        return Ok([true; 3]);
    }
    let known = ["pull", "resolve", "push", "referrers"];
    if let Some(unknown) = named.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("capabilities: {unknown:?} is unknown"));
    }
    let has = |wanted: &str| named.iter().any(|name| name == wanted);
    Ok([has("pull"), has("resolve"), has("push")])
}

/// One file with certificate and key, a list of such, or a list of pairs of files, of which the
/// second may be empty.
fn client(settings: &Table) -> Result<Vec<(String, String)>, String> {
    let wrong = || "client is neither a string nor a list of strings or pairs".to_owned();
    let both = |file: &str| (file.to_owned(), file.to_owned());
    let pair = |item: &Value| match item {
        Value::String(one) => Some(both(one)),
        Value::Array(pair) => match (pair.first()?.as_str()?, pair.get(1), pair.len()) {
            (cert, None, 1) => Some(both(cert)),
            (cert, Some(Value::String(key)), 2) if key.is_empty() => Some(both(cert)),
            (cert, Some(Value::String(key)), 2) => Some((cert.to_owned(), key.clone())),
            _ => None,
        },
        _ => None,
    };
    match settings.get("client") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![both(one)]),
        Some(Value::Array(list)) => list.iter().map(|item| pair(item).ok_or_else(wrong)).collect(),
        Some(_) => Err(wrong()),
    }
}

/// As Go writes them: `10s`, `1m30s`, `250ms`, `1.5h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("dial_timeout: {text:?} is no duration such as \"10s\"");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(end).ok_or_else(wrong)?;
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = next;
    }
    // containerd takes none as its own.
    let found = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if found.is_zero() { Err(wrong()) } else { Ok(found) }
}

fn headers(settings: &Table) -> Result<Vec<(String, String)>, String> {
    let mut headers = Vec::new();
    let table = table(settings, "header")?;
    for (name, _) in table.into_iter().flatten() {
        let values = table.map_or_else(|| Ok(Vec::new()), |t| strings(t, name))?;
        headers.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    Ok(headers)
}

fn table<'a>(settings: &'a Table, key: &str) -> Result<Option<&'a Table>, String> {
    settings
        .get(key)
        .map(|value| value.as_table().ok_or_else(|| format!("{key} is not a table")))
        .transpose()
}

fn string<'a>(settings: &'a Table, key: &str) -> Result<Option<&'a str>, String> {
    settings
        .get(key)
        .map(|value| value.as_str().ok_or_else(|| format!("{key} is not a string")))
        .transpose()
}

fn boolean(settings: &Table, key: &str) -> Result<bool, String> {
    settings
        .get(key)
        .map_or(Ok(false), |value| value.as_bool().ok_or_else(|| format!("{key} is not a boolean")))
}

/// One string or a list of them.
fn strings(settings: &Table, key: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("{key} is neither a string nor a list of strings");
    match settings.get(key) {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => {
            list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Host>, String> {
        parse(text, Path::new("/certs/x"), "example.com:5000")
    }

    #[test]
    fn mirrors_come_in_order_and_the_server_last() {
        let hosts = parsed(
            r#"
            server = "https://up.example"
            [host."https://b.example:8443/prefix/"]
            capabilities = ["pull"]
            ca = "ca.pem"
            skip_verify = true
            [host."http://a.example/own/path"]
            override_path = true
            ca = ["/abs.pem", "rel.pem"]
            some_future_key = 1
            [host."http://a.example/own/path".header]
            x-one = "1"
            x-two = ["2", "3"]
            "#,
        )
        .unwrap();
        let bases: Vec<_> = hosts.iter().map(|h| h.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://b.example:8443/prefix/v2",
                "http://a.example/own/path",
                "https://up.example/v2"
            ]
        );
        assert!(hosts[0].pull && !hosts[0].resolve && hosts[0].skip_verify);
        assert_eq!(hosts[0].ca, [PathBuf::from("/certs/x/ca.pem")]);
        assert!(hosts[1].pull && hosts[1].resolve && !hosts[1].skip_verify);
        assert_eq!(hosts[1].ca, [PathBuf::from("/abs.pem"), PathBuf::from("/certs/x/rel.pem")]);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let wanted = [pair("x-one", "1"), pair("x-two", "2"), pair("x-two", "3")];
        assert_eq!(hosts[1].headers, wanted);
        assert_eq!(hosts[2].authority, "up.example");
    }

    #[test]
    fn client_certificates_come_in_three_forms() {
        let clients = |client: &str| {
            let hosts = parsed(&format!("[host.\"https://a\"]\nclient = {client}")).unwrap();
            hosts[0].client.clone()
        };
        let pair = |cert: &str, key: &str| {
            (Path::new("/certs/x").join(cert), Path::new("/certs/x").join(key))
        };
        assert_eq!(clients("\"one.pem\""), [pair("one.pem", "one.pem")]);
        assert_eq!(
            clients("[\"one.pem\", \"/two.pem\"]"),
            [pair("one.pem", "one.pem"), pair("/two.pem", "/two.pem")]
        );
        assert_eq!(
            clients("[[\"one.pem\", \"one.key\"], [\"two.pem\", \"\"], [\"three.pem\"]]"),
            [
                pair("one.pem", "one.key"),
                pair("two.pem", "two.pem"),
                pair("three.pem", "three.pem")
            ]
        );
    }

    #[test]
    fn durations_are_go_s() {
        let table = [("10s", 10_000), ("1m30s", 90_000), ("250ms", 250), ("1.5h", 5_400_000)];
        for (text, millis) in table {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn capabilities_are_all_unless_some_are_named() {
        let hosts = parsed("capabilities = [\"push\"]\n[host.\"https://a\"]").unwrap();
        let has = |host: &Host| (host.pull, host.resolve, host.push);
        assert_eq!((has(&hosts[0]), has(&hosts[1])), ((true, true, true), (false, false, true)));
    }

    #[test]
    fn without_a_server_the_registry_itself_is_asked() {
        let hosts = parsed("skip_verify = true").unwrap();
        assert_eq!(hosts.len(), 1);
        assert_eq!(hosts[0].base, "https://example.com:5000/v2");
        assert!(hosts[0].skip_verify);
    }

    #[test]
    fn wrong_values_are_refused_with_their_key() {
        let table = [
            ("server = 1", "server"),
            ("[host.\"https://a\"]\ncapabilities = [\"fly\"]", "fly"),
            ("[host.\"https://a\"]\nskip_verify = \"yes\"", "skip_verify"),
            ("[host.\"https://a\"]\nca = 3", "ca"),
            ("[host.\"https://a\"]\nclient = 3", "client"),
            ("[host.\"https://a\"]\nclient = [[\"a\", \"b\", \"c\"]]", "client"),
            ("[host.\"https://a\"]\ndial_timeout = 3", "dial_timeout"),
            ("[host.\"https://a\"]\ndial_timeout = \"3\"", "dial_timeout"),
            ("[host.\"https://a\"]\ndial_timeout = \"0s\"", "dial_timeout"),
            ("[host.\"ftp://a\"]", "ftp"),
            ("host = 1", "host"),
            ("server = ", "1"),
        ];
        for (text, named) in table {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn without_configuration_only_loopback_is_plain_http() {
        let table = [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("localhost", "http://localhost/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.9:5000", "http://127.0.0.9:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ];
        for (registry, base) in table {
            assert_eq!(hosts(None, registry).unwrap()[0].base, base);
        }
    }

    #[test]
    fn the_most_specific_directory_counts() {
        let root = tempfile::tempdir().unwrap();
        let put = |dir: &str, server: &str| {
            std::fs::create_dir(root.path().join(dir)).unwrap();
            let file = root.path().join(dir).join("hosts.toml");
            std::fs::write(file, format!("server = \"https://{server}\"")).unwrap();
        };
        let base = |registry: &str| hosts(Some(root.path()), registry).unwrap().remove(0).base;
        assert_eq!(base("x.example:1"), "https://x.example:1/v2");
        put("_default", "default");
        assert_eq!(base("x.example:1"), "https://default/v2");
        put("x.example:1", "colon");
        assert_eq!(base("x.example:1"), "https://colon/v2");
        put("x.example_1_", "portable");
        assert_eq!(base("x.example:1"), "https://portable/v2");
    }
}
