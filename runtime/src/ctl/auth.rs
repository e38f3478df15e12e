//! Credentials for a registry. None is taken from the command line, where every user of the
//! machine can read it.

use std::io::Read;
use std::path::PathBuf;

use berth_proto::control::Credentials;

use crate::outcome::{Failure, Outcome};

/// USER:PASSWORD, for scripts.
const VARIABLE: &str = "BERTHCTL_CREDS";
/// Longer credentials are a mistake.
const MAX_CREDENTIALS: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct AuthArgs {
    /// Read USER:PASSWORD from standard input.
    #[arg(long, conflicts_with = "creds_file")]
    creds_stdin: bool,
    /// Read USER:PASSWORD from a file. The environment's BERTHCTL_CREDS serves, too.
    #[arg(long, value_name = "FILE")]
    creds_file: Option<PathBuf>,
}

impl AuthArgs {
    /// What the caller gives for one registry; none: the node's own credentials serve.
    pub(crate) fn credentials(&self) -> Outcome<Option<Credentials>> {
        let text = if self.creds_stdin {
            Some(read(std::io::stdin(), "standard input")?)
        } else if let Some(path) = &self.creds_file {
            let what = path.display().to_string();
            let file =
                std::fs::File::open(path).map_err(|error| Failure::io("open", &what, error))?;
            Some(read(file, &what)?)
        } else {
            std::env::var(VARIABLE).ok().filter(|text| !text.is_empty())
        };
        text.map(|text| parse(&text)).transpose()
    }
}

fn read(from: impl Read, what: &str) -> Outcome<String> {
    let mut text = String::new();
    from.take(MAX_CREDENTIALS)
        .read_to_string(&mut text)
        .map_err(|error| Failure::io("read credentials from", what, error))?;
    Ok(text)
}

/// No message repeats any of it.
fn parse(text: &str) -> Outcome<Credentials> {
    let text = text.trim_end_matches(['\r', '\n']);
    match text.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok(Credentials {
            username: user.to_owned(),
            password: password.to_owned(),
            ..Credentials::default()
        }),
        _ => Err(Failure::Usage("credentials are not USER:PASSWORD".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_user_and_password() {
        let found = parse("me:se:cret\n").unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("me", "se:cret"));
        for bad in ["", "secret", ":secret", "\n"] {
            let report = parse(bad).unwrap_err().report();
            assert!(!report.contains("secret"), "{report}");
        }
    }
}
