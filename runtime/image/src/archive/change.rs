//! Dockerfile instructions on an image's configuration, as `docker import --change` takes them.
//! Pure.

use serde_json::{Map, Value, json};

/// What is taken; the others need a build.
const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR";

/// Applies one instruction to the `config` object of an image configuration.
pub(super) fn apply(config: &mut Map<String, Value>, instruction: &str) -> Result<(), String> {
    let text = instruction.trim();
    let (verb, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(format!("change {instruction:?} has no value"));
    }
    let bad = |reason: &str| format!("change {instruction:?} {reason}");
    match verb.to_ascii_uppercase().as_str() {
        "CMD" => set(config, "Cmd", command(rest)),
        "ENTRYPOINT" => set(config, "Entrypoint", command(rest)),
        "USER" => set(config, "User", json!(rest)),
        "WORKDIR" if rest.starts_with('/') => set(config, "WorkingDir", json!(rest)),
        "WORKDIR" => return Err(bad("is no absolute path")),
        "STOPSIGNAL" => set(config, "StopSignal", json!(rest)),
        "ENV" => pairs(rest).map_err(bad)?.iter().for_each(|(key, value)| env(config, key, value)),
        "LABEL" => {
            let labels = pairs(rest).map_err(bad)?;
            extend(config, "Labels", labels.into_iter().map(|(key, value)| (key, json!(value))));
        }
        "EXPOSE" => {
            let ports = words(rest).map_err(bad)?;
            let ports: Option<Vec<_>> = ports.iter().map(|port| self::port(port)).collect();
            extend(config, "ExposedPorts", ports.ok_or_else(|| bad("names no port"))?);
        }
        "VOLUME" => {
            let volumes = list(rest).map_or_else(|| words(rest), Ok).map_err(bad)?;
            extend(config, "Volumes", volumes.into_iter().map(|volume| (volume, json!({}))));
        }
        _ => return Err(bad(&format!("is none of {KNOWN}"))),
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

/// Adds to the object under this key.
fn extend(
    config: &mut Map<String, Value>,
    key: &str,
    entries: impl IntoIterator<Item = (String, Value)>,
) {
    let mut all = match config.remove(key) {
        Some(Value::Object(all)) => all,
        _ => Map::new(),
    };
    all.extend(entries);
    config.insert(key.to_owned(), Value::Object(all));
}

/// A later value of a variable replaces the earlier.
fn env(config: &mut Map<String, Value>, key: &str, value: &str) {
    let begin = format!("{key}=");
    let mut all: Vec<Value> =
        config.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    all.retain(|one| !one.as_str().is_some_and(|text| text.starts_with(&begin)));
    all.push(json!(format!("{begin}{value}")));
    set(config, "Env", Value::from(all));
}

/// A list of words as JSON, or a line for the shell.
fn command(text: &str) -> Value {
    list(text).map_or_else(|| json!(["/bin/sh", "-c", text]), |words| json!(words))
}

fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// `80` means `80/tcp`.
fn port(text: &str) -> Option<(String, Value)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let known = matches!(protocol, "tcp" | "udp" | "sctp");
    (known && number.parse::<u16>().is_ok_and(|n| n > 0))
        .then(|| (format!("{number}/{protocol}"), json!({})))
}

/// `A=b C="d e"`, or of old `A all the rest`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let words = words(text)?;
    if words.first().is_some_and(|word| !word.contains('=')) {
        let (key, value) = text.split_once(char::is_whitespace).ok_or("has no value")?;
        return Ok(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| {
        let (key, value) = word.split_once('=').ok_or("is not KEY=VALUE")?;
        if key.is_empty() {
            Err("has an empty key")
        } else {
            Ok((key.to_owned(), value.to_owned()))
        }
    };
    words.into_iter().map(pair).collect()
}

/// Words as a shell splits them: both kinds of quotes, and backslashes outside of single ones.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().push(chars.next().ok_or("ends with a backslash")?);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("has an open quote") } else { Ok(words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_make_the_configuration() {
        let mut config = Map::new();
        for instruction in [
            "CMD [\"sh\", \"-c\", \"a b\"]",
            "entrypoint exec thing --flag",
            "ENV A=1 B=\"two words\" C='x\\y'",
            "ENV A=2",
            "ENV OLD all the rest",
            "USER 1000:50",
            "WORKDIR /srv",
            "STOPSIGNAL SIGQUIT",
            "EXPOSE 80 53/udp",
            "LABEL a=b c=d\\ e",
            "VOLUME /data /more",
            "VOLUME [\"/json\"]",
        ] {
            apply(&mut config, instruction).unwrap();
        }
        let want = json!({
            "Cmd": ["sh", "-c", "a b"],
            "Entrypoint": ["/bin/sh", "-c", "exec thing --flag"],
            "Env": ["B=two words", "C=x\\y", "A=2", "OLD=all the rest"],
            "User": "1000:50", "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": {"a": "b", "c": "d e"},
            "Volumes": {"/data": {}, "/more": {}, "/json": {}},
        });
        assert_eq!(Value::from(config), want);
    }

    #[test]
    fn what_is_no_instruction_is_named() {
        for bad in [
            "",
            "CMD",
            "RUN make",
            "ENV A=\"b",
            "ENV A=b C",
            "ENV =b",
            "WORKDIR srv",
            "EXPOSE http",
            "EXPOSE 0",
            "LABEL a\\",
        ] {
            let error = apply(&mut Map::new(), bad).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
