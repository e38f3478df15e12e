//! The configuration file: raw (its grammar and keys) -> resolved (complete and checked).
//!
//! An unknown key is an error that names the key and its line; a value that can't be used is
//! one that names the key and the value. No file at all means the defaults.

mod limits;
mod policy;
mod raw;
mod registry;
mod resolved;
mod stream;

use std::io;
use std::path::{Path, PathBuf};

pub use limits::ImageLimits;
pub use policy::{ImagePolicy, PolicyAction, PolicyRule};
pub use registry::Registry;
pub use resolved::{
    Builtin, Cgroup, CgroupDriver, Config, Cri, Image, InvalidValue, Log, Metrics, Network,
    Reloadable, Shim,
};
pub use stream::{Stream, StreamTls};

/// The file that is read when the command line names none; it may be absent.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// The defaults as a commented file.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("read configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Not TOML, a key nobody knows, or a value of the wrong type. The source's text has the
    /// line, the column and the key.
    #[error("configuration {}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value that can't be used.
    #[error("configuration {}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Which and why.
        source: InvalidValue,
    },
}

/// Reads `file`; without one, [`DEFAULT_FILE`] where it exists, else the defaults.
pub fn load(file: Option<&Path>) -> Result<Config, Error> {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => parse(path, ""),
        Err(source) => Err(Error::Read { file: path.to_owned(), source }),
    }
}

/// Checks the text of a configuration; `file` is for messages.
pub fn parse(file: &Path, text: &str) -> Result<Config, Error> {
    let raw = toml::from_str(text)
        .map_err(|error| Error::Parse { file: file.to_owned(), source: Box::new(error) })?;
    resolved::resolve(raw).map_err(|source| Error::Invalid { file: file.to_owned(), source })
}

#[cfg(test)]
mod tests;
