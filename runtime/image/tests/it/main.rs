//! The image store against a real registry and against lying ones. Runs as root.

#![forbid(unsafe_code)]

#[cfg(test)]
mod archives;
#[cfg(test)]
mod badtars;
#[cfg(test)]
mod bombs;
#[cfg(test)]
mod conduct;
#[cfg(test)]
mod cosign;
#[cfg(test)]
mod downloads;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod heal;
#[cfg(test)]
mod https;
#[cfg(test)]
mod images;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod login;
#[cfg(test)]
mod mounted;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod packages;
#[cfg(test)]
mod proxied;
#[cfg(test)]
mod pull;
#[cfg(test)]
mod pushing;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod reorder;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod signed;
#[cfg(test)]
mod store;
#[cfg(test)]
mod tarball;
#[cfg(test)]
mod tree;
