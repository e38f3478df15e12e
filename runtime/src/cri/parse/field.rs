//! Checks that many fields share. Each names the field's path and its value when it refuses.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::path::{Component, Path, PathBuf};

use crate::pod::{Error, Result};

/// What a message repeats of a value.
const SHOWN: usize = 128;
/// Names that go into CNI arguments and status; Kubernetes allows 253.
const MAX_NAME: usize = 253;
/// Linux: `PATH_MAX`, the closing NUL included.
const MAX_PATH: usize = 4096;
/// Keys and values of one map together. Kubernetes allows 256 KiB of annotations on a pod.
const MAX_MAP: usize = 512 * 1024;

/// A refusal of `field`.
pub(super) fn refuse<T>(field: impl Into<String>, value: impl Display, why: &str) -> Result<T> {
    let value = value.to_string();
    let shown = match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", value.get(..end).unwrap_or_default()),
        None => value,
    };
    Err(Error::invalid(field, shown, why))
}

/// A field whose values come in an enumeration of the wire.
pub(in crate::cri) fn choice<T: TryFrom<i32>>(field: &str, value: i32) -> Result<T> {
    match T::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => refuse(field, value, "not a value of the enumeration"),
    }
}

/// The message that must be there.
pub(super) fn required<'a, T>(field: &str, value: Option<&'a T>) -> Result<&'a T> {
    value.map_or_else(|| refuse(field, "", "is missing"), Ok)
}

/// The id of a pod or container, or the beginning of one.
pub(in crate::cri) fn id<'a>(field: &str, value: &'a str) -> Result<&'a str> {
    if value.is_empty() {
        return refuse(field, value, "is empty");
    }
    Ok(value)
}

/// A name of Kubernetes: not empty, not over-long, nothing unprintable.
pub(super) fn name(field: &str, value: &str) -> Result<String> {
    if value.is_empty() {
        return refuse(field, value, "is empty");
    }
    if value.len() > MAX_NAME {
        return refuse(field, value, "is longer than 253 bytes");
    }
    if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse(field, value, "has a blank or a control character");
    }
    Ok(value.to_owned())
}

/// A name that CNI_ARGS carries, whose separators are `;` and `=`.
pub(super) fn cni_name(field: &str, value: &str) -> Result<String> {
    if value.contains([';', '=']) {
        return refuse(field, value, "has one of the separators ';' and '='");
    }
    name(field, value)
}

/// Text for the kernel: anything but a NUL byte.
pub(super) fn no_nul(field: &str, value: &str) -> Result<String> {
    if value.contains('\0') {
        return refuse(field, value, "has a NUL byte");
    }
    Ok(value.to_owned())
}

/// Each of a list of texts for the kernel.
pub(super) fn all_no_nul(field: &str, values: &[String]) -> Result<Vec<String>> {
    values.iter().enumerate().map(|(n, v)| no_nul(&format!("{field}[{n}]"), v)).collect()
}

/// One word of a line in a file that we write.
pub(super) fn word(field: &str, value: &str) -> Result<String> {
    if value.is_empty() || value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse(field, value, "is not one word");
    }
    Ok(value.to_owned())
}

/// Each of a list of words.
pub(super) fn words(field: &str, values: &[String]) -> Result<Vec<String>> {
    values.iter().enumerate().map(|(n, v)| word(&format!("{field}[{n}]"), v)).collect()
}

/// An absolute path; it may climb.
pub(super) fn absolute(field: &str, value: &str) -> Result<String> {
    if value.is_empty() {
        return refuse(field, value, "is empty");
    }
    if !value.starts_with('/') {
        return refuse(field, value, "is not an absolute path");
    }
    if value.len() >= MAX_PATH {
        return refuse(field, value, "is longer than a path may be");
    }
    no_nul(field, value)
}

/// An absolute path without `..`.
pub(super) fn clean_absolute(field: &str, value: &str) -> Result<String> {
    let path = absolute(field, value)?;
    if climbs(&path) {
        return refuse(field, value, "has a \"..\"");
    }
    Ok(path)
}

/// A relative path without `..`.
pub(super) fn clean_relative(field: &str, value: &str) -> Result<PathBuf> {
    no_nul(field, value)?;
    if value.starts_with('/') {
        return refuse(field, value, "is not a relative path");
    }
    if climbs(value) {
        return refuse(field, value, "has a \"..\"");
    }
    if value.ends_with('/') || Path::new(value).file_name().is_none() {
        return refuse(field, value, "does not name a file");
    }
    Ok(PathBuf::from(value))
}

fn climbs(path: &str) -> bool {
    Path::new(path).components().any(|c| c == Component::ParentDir)
}

/// Labels or annotations.
pub(super) fn map(field: &str, map: &HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    let size: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_MAP {
        return refuse(field, format!("{size} bytes"), "is larger than 512 KiB in all");
    }
    if map.contains_key("") {
        return refuse(field, "", "has an empty key");
    }
    for (key, value) in map {
        no_nul(field, key)?;
        no_nul(&format!("{field}[{key:?}]"), value)?;
    }
    Ok(map.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
}

/// A time in seconds. More than a century counts as a century, so that no clock overflows.
pub(in crate::cri) fn seconds(field: &str, value: i64) -> Result<u64> {
    const CENTURY: u64 = 100 * 366 * 24 * 60 * 60;
    match u64::try_from(value) {
        Ok(seconds) => Ok(seconds.min(CENTURY)),
        Err(_) => refuse(field, value, "is negative"),
    }
}

/// A command line: a program and its arguments.
pub(in crate::cri) fn argv(field: &str, values: &[String]) -> Result<Vec<String>> {
    if values.first().is_none_or(String::is_empty) {
        return refuse(field, "", "names no program");
    }
    all_no_nul(field, values)
}
