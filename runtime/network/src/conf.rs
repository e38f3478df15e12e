//! One network configuration: a named list of plugins, parsed from a `.conflist` or from a single
//! plugin's `.conf`.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::attachment::is_cni_name;

/// A version of the CNI specification that this crate speaks, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [(Self, &str); 5] = [
        (Self::V0_3_0, "0.3.0"),
        (Self::V0_3_1, "0.3.1"),
        (Self::V0_4_0, "0.4.0"),
        (Self::V1_0_0, "1.0.0"),
        (Self::V1_1_0, "1.1.0"),
    ];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(version, _)| *version)
    }

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(version, _)| *version == self).map_or("", |(_, name)| name)
    }

    /// CHECK came with 0.4.0.
    pub(crate) fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// STATUS and GC came with 1.1.0.
    pub(crate) fn has_status_and_gc(self) -> bool {
        self >= Self::V1_1_0
    }

    /// DEL is given the cached result from 0.4.0 on.
    pub(crate) fn del_takes_result(self) -> bool {
        self >= Self::V0_4_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no usable network configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfError {
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not an object")]
    NotObject,
    #[error("{key:?} is missing or not {want}")]
    Key { key: &'static str, want: &'static str },
    #[error("\"name\" {0:?} is not made of letters, digits, '_', '.', '-'")]
    Name(String),
    #[error("\"cniVersion\" {found:?} is none of {known}")]
    Version { found: Vec<String>, known: String },
    #[error("\"plugins\" is empty")]
    NoPlugins,
    #[error("\"type\" {0:?} is not the name of a plugin")]
    Type(String),
    #[error("a list (\"plugins\") belongs in a file whose name ends in .conflist")]
    ListInConf,
}

/// A network configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) version: Version,
    /// Never empty; in the order ADD runs them.
    pub(crate) plugins: Vec<PluginConf>,
    /// What the list forbids.
    pub(crate) disabled: Disabled,
}

/// Verbs that a list wants not to be run (CNI specification, section 1). Someone who shares a
/// network among several runtimes has to disable GC: each would take away the others' addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Disabled {
    pub(crate) check: bool,
    pub(crate) gc: bool,
}

/// One plugin's part of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginConf {
    /// The name of its file.
    pub(crate) kind: String,
    /// The object as it was written.
    keys: Map<String, Value>,
}

impl Network {
    /// Parses a `.conflist`.
    pub(crate) fn parse_list(text: &[u8]) -> Result<Self, ConfError> {
        let list = object(serde_json::from_slice(text)?)?;
        let plugins = list.get("plugins").and_then(Value::as_array);
        let plugins = plugins.ok_or(ConfError::Key { key: "plugins", want: "a list" })?;
        let plugins: Vec<_> = plugins.iter().map(PluginConf::parse).collect::<Result<_, _>>()?;
        if plugins.is_empty() {
            return Err(ConfError::NoPlugins);
        }
        let disabled =
            Disabled { check: flag(&list, "disableCheck")?, gc: flag(&list, "disableGC")? };
        Ok(Self { name: name(&list)?, version: version(&list)?, plugins, disabled })
    }

    /// Parses a single plugin's `.conf` or `.json`: a list of one.
    pub(crate) fn parse_conf(text: &[u8]) -> Result<Self, ConfError> {
        let value: Value = serde_json::from_slice(text)?;
        if value.get("plugins").is_some() && value.get("type").is_none() {
            return Err(ConfError::ListInConf);
        }
        let plugin = PluginConf::parse(&value)?;
        let (name, version) = (name(&plugin.keys)?, version(&plugin.keys)?);
        Ok(Self { name, version, plugins: vec![plugin], disabled: Disabled::default() })
    }

    /// The configuration as a list that [`parse_list`](Self::parse_list) takes back.
    pub(crate) fn to_list(&self) -> Value {
        let plugins: Vec<_> = self.plugins.iter().map(|p| &p.keys).collect();
        json!({
            "name": self.name, "cniVersion": self.version.as_str(), "plugins": plugins,
            "disableCheck": self.disabled.check, "disableGC": self.disabled.gc,
        })
    }

    /// What `plugin` reads from its standard input: its own keys, the list's name and version,
    /// the arguments of the capabilities it declares, and the result before it.
    pub(crate) fn input(
        &self,
        plugin: &PluginConf,
        capability_args: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut keys = plugin.keys.clone();
        keys.insert("name".into(), json!(self.name));
        keys.insert("cniVersion".into(), json!(self.version.as_str()));
        let args: Map<String, Value> = capability_args
            .iter()
            .filter(|(capability, _)| plugin.declares(capability))
            .map(|(capability, arg)| (capability.clone(), arg.clone()))
            .collect();
        if !args.is_empty() {
            keys.insert("runtimeConfig".into(), Value::Object(args));
        }
        if let Some(previous) = previous {
            keys.insert("prevResult".into(), previous.clone());
        }
        Value::Object(keys)
    }

    /// Whether some plugin takes the argument of this capability.
    pub(crate) fn declares(&self, capability: &str) -> bool {
        self.plugins.iter().any(|p| p.declares(capability))
    }
}

impl PluginConf {
    fn parse(value: &Value) -> Result<Self, ConfError> {
        let keys = value.as_object().ok_or(ConfError::NotObject)?;
        let kind = text(keys, "type")?;
        // A path would reach out of the plugin directories.
        if kind.is_empty() || kind.contains(['/', '\0']) || kind == "." || kind == ".." {
            return Err(ConfError::Type(kind));
        }
        Ok(Self { kind, keys: keys.clone() })
    }

    fn declares(&self, capability: &str) -> bool {
        let declared = self.keys.get("capabilities").and_then(|c| c.get(capability));
        declared.and_then(Value::as_bool).unwrap_or(false)
    }
}

fn object(value: Value) -> Result<Map<String, Value>, ConfError> {
    match value {
        Value::Object(keys) => Ok(keys),
        _ => Err(ConfError::NotObject),
    }
}

fn text(keys: &Map<String, Value>, key: &'static str) -> Result<String, ConfError> {
    let text = keys.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or(ConfError::Key { key, want: "a text" })
}

/// Absent means false. Some write it as a text.
fn flag(keys: &Map<String, Value>, key: &'static str) -> Result<bool, ConfError> {
    match keys.get(key) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
        Some(_) => Err(ConfError::Key { key, want: "true or false" }),
    }
}

fn name(keys: &Map<String, Value>) -> Result<String, ConfError> {
    let name = text(keys, "name")?;
    if is_cni_name(&name) { Ok(name) } else { Err(ConfError::Name(name)) }
}

/// The highest of `cniVersion` and `cniVersions` (the latter since 1.1.0) that this crate speaks.
fn version(keys: &Map<String, Value>) -> Result<Version, ConfError> {
    let several = keys.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let found = keys.get("cniVersion").into_iter().chain(several).filter_map(Value::as_str);
    let found: Vec<&str> = found.collect();
    found.iter().filter_map(|v| Version::parse(v)).max().ok_or_else(|| ConfError::Version {
        found: found.iter().map(|&v| v.to_owned()).collect(),
        known: Version::ALL.map(|(_, name)| name).join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Network, ConfError> {
        Network::parse_list(text.as_bytes())
    }

    #[test]
    fn each_fault_is_named() {
        let cases = [
            ("{", "not JSON"),
            ("[]", "not an object"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "\"name\" is missing"),
            (r#"{"name":"a/b","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#, "\"a/b\""),
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "\"cniVersion\" [] is none of 0.3.0"),
            (r#"{"name":"n","cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "[\"0.2.0\"]"),
            (r#"{"name":"n","cniVersion":"1.0.0"}"#, "\"plugins\" is missing"),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":[]}"#, "\"plugins\" is empty"),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":[{}]}"#, "\"type\" is missing"),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"../a"}]}"#, "\"../a\""),
            (r#"{"name":"n","cniVersion":"1.0.0","plugins":[3]}"#, "not an object"),
            (
                r#"{"name":"n","cniVersion":"1.1.0","disableGC":1,"plugins":[{"type":"a"}]}"#,
                "\"disableGC\" is missing or not true or false",
            ),
        ];
        for (text, want) in cases {
            let error = list(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn the_highest_known_version_is_chosen() {
        let cases = [
            (r#""cniVersion":"0.3.1""#, "0.3.1"),
            (r#""cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"]"#, "1.1.0"),
            (r#""cniVersions":["0.4.0","1.0.0"]"#, "1.0.0"),
        ];
        for (versions, want) in cases {
            let text = format!(r#"{{"name":"n",{versions},"plugins":[{{"type":"a"}}]}}"#);
            assert_eq!(list(&text).unwrap().version.as_str(), want);
        }
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = br#"{"name":"n","cniVersion":"0.4.0","type":"bridge","mtu":9000}"#;
        let network = Network::parse_conf(text).unwrap();
        assert_eq!(network.plugins.len(), 1);
        assert_eq!(network.plugins[0].kind, "bridge");
        let list = network.to_list().to_string();
        assert_eq!(Network::parse_list(list.as_bytes()).unwrap(), network);

        let misplaced = br#"{"name":"n","cniVersion":"0.4.0","plugins":[{"type":"bridge"}]}"#;
        let error = Network::parse_conf(misplaced).unwrap_err().to_string();
        assert!(error.contains(".conflist"), "{error}");
    }

    #[test]
    fn what_a_list_forbids_is_kept() {
        let network = list(
            r#"{"name":"n","cniVersion":"1.1.0","disableCheck":"true","disableGC":true,
                "plugins":[{"type":"a"}]}"#,
        )
        .unwrap();
        assert_eq!(network.disabled, Disabled { check: true, gc: true });
        let again = Network::parse_list(network.to_list().to_string().as_bytes()).unwrap();
        assert_eq!(again, network);
    }

    #[test]
    fn a_plugin_is_told_only_of_capabilities_it_declares() {
        let network = list(
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[
                {"type":"a","mtu":1},
                {"type":"b","capabilities":{"mac":true,"ips":false}}]}"#,
        )
        .unwrap();
        let args = json!({"mac": "m", "ips": ["i"]});
        let args = args.as_object().unwrap();
        let previous = json!({"ips": []});
        assert_eq!(
            network.input(&network.plugins[0], args, None),
            json!({"name": "n", "cniVersion": "1.0.0", "type": "a", "mtu": 1})
        );
        assert_eq!(
            network.input(&network.plugins[1], args, Some(&previous)),
            json!({
                "name": "n", "cniVersion": "1.0.0", "type": "b",
                "capabilities": {"mac": true, "ips": false},
                "runtimeConfig": {"mac": "m"}, "prevResult": {"ips": []},
            })
        );
        assert!(network.declares("mac") && !network.declares("ips"));
    }
}
