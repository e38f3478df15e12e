//! The command line, by the convention of containerd's shims: Go's flags (`-x v`, `-x=v`, `--x`),
//! then one verb.

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// `-v`: print the version.
    Version,
    /// Start the resident server and print its address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Say whether pods on this machine can have user namespaces. Ours alone.
    Probe,
}

/// The parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) verb: Verb,
    /// The pod's id, or the container's for `delete`.
    pub(crate) id: String,
    /// The OCI bundle, for `delete`; where layers lie, for `probe`. Empty: the working directory.
    pub(crate) bundle: String,
    /// More messages.
    pub(crate) debug: bool,
}

/// What is wrong with a command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("unknown flag {0:?}")]
    UnknownFlag(String),
    #[error("flag {0:?} needs a value")]
    NoValue(String),
    #[error("no verb: start or delete is needed")]
    NoVerb,
    #[error("unknown verb {0:?}: start or delete is needed")]
    UnknownVerb(String),
    #[error("flag \"id\" is needed")]
    NoId,
}

/// Flags with a value that this shim takes and has no use for: it publishes no events and serves
/// at the address that its working directory gives.
const UNUSED: [&str; 4] = ["namespace", "address", "publish-binary", "socket"];

impl Args {
    /// Parses the arguments after the program's name.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, ArgsError> {
        let mut words = words.into_iter();
        let mut args =
            Self { verb: Verb::Start, id: String::new(), bundle: String::new(), debug: false };
        loop {
            let word = words.next().ok_or(ArgsError::NoVerb)?;
            let Some(flag) = word.strip_prefix('-') else {
                args.verb = verb(&word)?;
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if name == "v" {
                args.verb = Verb::Version;
                return Ok(args);
            }
            if name == "debug" {
                args.debug = value.is_none_or(|text| text == "true" || text == "1");
                continue;
            }
            let value = || value.or_else(|| words.next()).ok_or(ArgsError::NoValue(word.clone()));
            match name {
                "id" => args.id = value()?,
                "bundle" => args.bundle = value()?,
                name if UNUSED.contains(&name) => drop(value()?),
                _ => return Err(ArgsError::UnknownFlag(word)),
            }
        }
        if args.id.is_empty() { Err(ArgsError::NoId) } else { Ok(args) }
    }
}

fn verb(word: &str) -> Result<Verb, ArgsError> {
    match word {
        "start" => Ok(Verb::Start),
        "delete" => Ok(Verb::Delete),
        "probe" => Ok(Verb::Probe),
        _ => Err(ArgsError::UnknownVerb(word.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(|w| w.trim_matches('"').to_owned()))
    }

    #[test]
    fn containerds_command_lines_are_understood() {
        let args = parse("-namespace k8s.io -id p1 -address \"\" start").unwrap();
        assert_eq!(
            args,
            Args { verb: Verb::Start, id: "p1".into(), bundle: String::new(), debug: false }
        );
        let line = "--namespace=k8s.io -address /a.sock -publish-binary /x -id c1 -bundle /b -debug delete";
        let args = parse(line).unwrap();
        assert_eq!(
            args,
            Args { verb: Verb::Delete, id: "c1".into(), bundle: "/b".into(), debug: true }
        );
        assert_eq!(parse("-v").unwrap().verb, Verb::Version);
        assert_eq!(parse("-id p -bundle /b probe").unwrap().verb, Verb::Probe);
        assert!(!parse("-debug=false -id x start").unwrap().debug);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(parse("-id x"), Err(ArgsError::NoVerb));
        assert_eq!(parse("-id x stop"), Err(ArgsError::UnknownVerb("stop".into())));
        assert_eq!(parse("-what x start"), Err(ArgsError::UnknownFlag("-what".into())));
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("-id".into())));
        assert_eq!(parse("start"), Err(ArgsError::NoId));
    }
}
