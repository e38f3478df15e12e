//! How registries are reached.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::raw;
use super::resolved::{InvalidValue, absolute};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Registry {
    /// One directory per registry host, each with a `hosts.toml`.
    pub config_path: PathBuf,
    /// Docker's `config.json` with credentials for all pulls of the node.
    pub auth_file: Option<PathBuf>,
    /// A download that brings nothing for so long has stalled.
    pub stall_timeout_seconds: u64,
    /// So has one that is slower over such a span; 0: however slow.
    pub min_kib_per_second: u64,
    /// How often all hosts are asked again that did not serve but may yet.
    pub retries: u32,
    /// For so long a host that failed is asked after the others.
    pub avoid_seconds: u64,
    /// Connections to one host at a time.
    pub connections_per_host: u32,
    /// What all pulls together may receive; 0: no bound.
    pub bandwidth_mib_per_second: u64,
    /// Layers of more than two such are fetched in several ranges at once; 0: never.
    pub chunk_mib: u32,
    /// Such ranges in memory at a time, over all pulls.
    pub chunks: u32,
    /// A download is kept for a later one from then on.
    pub resume_after_seconds: u64,
    /// All that is kept of downloads, together; 0: nothing.
    pub resume_gib: u64,
    /// Nothing is kept of them longer.
    pub resume_hours: u64,
}

pub(super) fn resolve(raw: raw::Registry) -> Result<Registry, InvalidValue> {
    let path = |key, value: Option<PathBuf>| value.map(|p| absolute(key, p)).transpose();
    let config_path = path("registry.config_path", raw.config_path)?;
    let positive = |key, value: Option<u32>, default| match value.unwrap_or(default) {
        0 => Err(InvalidValue::Zero { key }),
        value => Ok(value),
    };
    let stall = match raw.stall_timeout_seconds.unwrap_or(30) {
        0 => Err(InvalidValue::Zero { key: "registry.stall_timeout_seconds" }),
        seconds => Ok(seconds),
    };
    Ok(Registry {
        config_path: config_path.unwrap_or_else(|| PathBuf::from("/etc/berth/certs.d")),
        auth_file: path("registry.auth_file", raw.auth_file)?,
        stall_timeout_seconds: stall?,
        min_kib_per_second: raw.min_kib_per_second.unwrap_or(1),
        retries: raw.retries.unwrap_or(4),
        avoid_seconds: raw.avoid_seconds.unwrap_or(30),
        connections_per_host: positive(
            "registry.connections_per_host",
            raw.connections_per_host,
            8,
        )?,
        bandwidth_mib_per_second: raw.bandwidth_mib_per_second.unwrap_or(0),
        chunk_mib: raw.chunk_mib.unwrap_or(0),
        chunks: positive("registry.chunks", raw.chunks, 4)?,
        resume_after_seconds: raw.resume_after_seconds.unwrap_or(3),
        resume_gib: raw.resume_gib.unwrap_or(8),
        resume_hours: raw.resume_hours.unwrap_or(24),
    })
}

impl Registry {
    /// As the image store takes it.
    #[must_use]
    pub fn of_store(&self) -> berth_image::RegistryConfig {
        let some = |value: u64| (value > 0).then(|| value.saturating_mul(MIB));
        let size = self.chunk_mib.saturating_mul(1 << 20);
        let count = usize::try_from(self.chunks).unwrap_or(usize::MAX);
        berth_image::RegistryConfig {
            config_path: Some(self.config_path.clone()),
            auth_file: self.auth_file.clone(),
            stall_timeout: Duration::from_secs(self.stall_timeout_seconds),
            min_rate: self.min_kib_per_second.saturating_mul(KIB),
            retries: self.retries,
            avoid_for: Duration::from_secs(self.avoid_seconds),
            connections_per_host: usize::try_from(self.connections_per_host).unwrap_or(usize::MAX),
            bandwidth: some(self.bandwidth_mib_per_second),
            chunks: (size > 0).then_some(berth_image::Chunks { size, count }),
            resume: berth_image::Resume {
                after: Duration::from_secs(self.resume_after_seconds),
                max_bytes: self.resume_gib.saturating_mul(GIB),
                max_age: Duration::from_secs(self.resume_hours.saturating_mul(3600)),
            },
            ..berth_image::RegistryConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_store_s_own() {
        let found = resolve(raw::Registry::default()).unwrap().of_store();
        let wanted = berth_image::RegistryConfig {
            config_path: Some(PathBuf::from("/etc/berth/certs.d")),
            ..berth_image::RegistryConfig::default()
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn each_unit_is_what_its_key_says() {
        let raw = raw::Registry {
            min_kib_per_second: Some(2),
            bandwidth_mib_per_second: Some(3),
            chunk_mib: Some(5),
            resume_gib: Some(7),
            resume_hours: Some(2),
            ..raw::Registry::default()
        };
        let found = resolve(raw).unwrap().of_store();
        assert_eq!((found.min_rate, found.bandwidth), (2048, Some(3 << 20)));
        assert_eq!(found.chunks, Some(berth_image::Chunks { size: 5 << 20, count: 4 }));
        assert_eq!(found.resume.max_bytes, 7 << 30);
        assert_eq!(found.resume.max_age, Duration::from_secs(7200));
    }
}
