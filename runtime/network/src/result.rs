//! What a plugin answered to ADD, parsed.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::attachment::Dns;
use crate::conf::Version;
use crate::error::{PluginError, Stderr};
use crate::plugin::excerpt;

/// What an attachment got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// The name of the network.
    pub network: String,
    /// The addresses of the interface inside the namespace, in the plugins' order: the first is
    /// the primary one. Never empty when `add` returns it.
    pub ips: Vec<IpAddr>,
    /// Every interface the plugins made or used, on the host's side too.
    pub interfaces: Vec<Interface>,
    /// The resolver that the network wishes; empty fields where it says nothing.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address; may be empty.
    #[serde(default)]
    pub mac: String,
    /// The namespace's path; empty for an interface on the host's side.
    #[serde(default)]
    pub sandbox: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<RawIp>>,
    dns: Option<RawDns>,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawDns {
    nameservers: Option<Vec<String>>,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

/// Checks a plugin's answer and returns it as the next plugin's `prevResult`: with a version,
/// which some plugins leave out.
pub(crate) fn accept(output: &[u8], version: Version) -> Result<Value, PluginError> {
    let rubbish = |why: String| PluginError::Rubbish {
        why,
        output: excerpt(output),
        stderr: Stderr::default(),
    };
    let mut value: Value = serde_json::from_slice(output).map_err(|e| rubbish(e.to_string()))?;
    let keys = value.as_object_mut().ok_or_else(|| rubbish("not an object".into()))?;
    let said = keys.entry("cniVersion").or_insert_with(|| json!(version.as_str()));
    if said.as_str() == Some("") {
        *said = json!(version.as_str());
    }
    if said.as_str().and_then(Version::parse).is_none() {
        return Err(rubbish(format!("its cniVersion is {said}")));
    }
    parse("", "", &value).map_err(rubbish)?;
    Ok(value)
}

/// The attachment that a result describes, as seen from the interface `ifname`.
pub(crate) fn parse(network: &str, ifname: &str, result: &Value) -> Result<Attached, String> {
    let raw = Raw::deserialize(result).map_err(|e| e.to_string())?;
    let interfaces = raw.interfaces.unwrap_or_default();
    let mut ips = Vec::new();
    for ip in raw.ips.unwrap_or_default() {
        let address = address(&ip.address)?;
        if belongs(&ip, &interfaces, ifname)? {
            ips.push(address);
        }
    }
    let dns = raw.dns.unwrap_or_default();
    let dns = Dns {
        servers: dns.nameservers.unwrap_or_default(),
        searches: dns.search.unwrap_or_default(),
        options: dns.options.unwrap_or_default(),
    };
    Ok(Attached { network: network.to_owned(), ips, interfaces, dns })
}

/// Whether the address is on `ifname` inside the namespace. One that names no interface is.
fn belongs(ip: &RawIp, interfaces: &[Interface], ifname: &str) -> Result<bool, String> {
    let Some(index) = ip.interface else { return Ok(true) };
    let on = interfaces
        .get(index)
        .ok_or_else(|| format!("address {:?} is on interface {index}, not in it", ip.address))?;
    Ok(on.name == ifname && !on.sandbox.is_empty())
}

fn address(text: &str) -> Result<IpAddr, String> {
    let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
    ip.parse().map_err(|_| format!("{text:?} is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attached(text: &str) -> Result<Attached, String> {
        let value = accept(text.as_bytes(), Version::V1_0_0).map_err(|e| e.to_string())?;
        parse("n", "eth0", &value)
    }

    #[test]
    fn addresses_of_the_pod_come_in_order() {
        let dual = attached(
            r#"{"cniVersion":"0.4.0",
            "interfaces":[{"name":"br0","mac":"02:00"},{"name":"veth1"},
                          {"name":"eth0","sandbox":"/run/netns/x"}],
            "ips":[{"version":"6","address":"fd00::5/64","interface":2},
                   {"version":"4","address":"10.1.0.5/16","gateway":"10.1.0.1","interface":2},
                   {"address":"10.1.0.1/16","interface":0},
                   {"address":"10.9.9.9/32"}],
            "routes":[{"dst":"0.0.0.0/0"}],
            "dns":{"nameservers":["10.1.0.1"],"domain":"x","options":["ndots:5"]}}"#,
        )
        .unwrap();
        let ips: Vec<String> = dual.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["fd00::5", "10.1.0.5", "10.9.9.9"]);
        assert_eq!(dual.interfaces.len(), 3);
        assert_eq!(dual.dns.servers, ["10.1.0.1"]);
        assert_eq!(dual.dns.options, ["ndots:5"]);
        assert_eq!(dual.network, "n");
    }

    #[test]
    fn a_missing_version_is_the_configurations() {
        for text in ["{}", r#"{"cniVersion":""}"#, r#"{"ips":null,"dns":null}"#] {
            let value = accept(text.as_bytes(), Version::V0_4_0).unwrap();
            assert_eq!(value["cniVersion"], "0.4.0", "{text}");
        }
    }

    #[test]
    fn lies_are_refused() {
        let cases = [
            ("", "EOF"),
            ("ok", "expected"),
            ("[]", "not an object"),
            (r#"{"cniVersion":"0.2.0"}"#, "\"0.2.0\""),
            (r#"{"cniVersion":7}"#, "cniVersion is 7"),
            (r#"{"ips":[{"address":"ten"}]}"#, "\"ten\" is no address"),
            (r#"{"ips":[{"address":"10.0.0.1/8","interface":0}]}"#, "interface 0, not in it"),
            (r#"{"ips":[{"address":"10.0.0.1/8","interface":-1}]}"#, "invalid value"),
            (r#"{"ips":{}}"#, "invalid type"),
        ];
        for (text, want) in cases {
            let error = attached(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
