//! The plugin chain that pods are connected with: bridge, host-local, portmap.

use std::fs;
use std::path::Path;

use anyhow::Result;
use berth_tests::host;
use serde_json::json;

/// The bridges of this run, one per runtime.
pub(crate) struct Chain {
    id: u32,
}

const RUNTIMES: [&str; 2] = ["berth", "containerd"];

impl Chain {
    /// Bridges that are this process's own by their names.
    pub(crate) fn new() -> Self {
        Self { id: std::process::id() }
    }

    /// Writes a runtime's configuration list.
    pub(crate) fn write(&self, dir: &Path, runtime: &str) -> Result<()> {
        fs::create_dir_all(dir)?;
        // Two subnets out of the range for benchmarks (RFC 2544).
        let net = if runtime == "berth" { "198.18.0.0/16" } else { "198.19.0.0/16" };
        let list = json!({
            "cniVersion": "1.0.0",
            "name": format!("perf-{runtime}"),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge(runtime),
                    "isGateway": true,
                    "ipMasq": false,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": dir.with_file_name("ipam"),
                        "ranges": [[{"subnet": net}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        Ok(fs::write(dir.join("10-perf.conflist"), list.to_string())?)
    }

    /// Removes the bridges.
    pub(crate) fn remove(&self) {
        for runtime in RUNTIMES {
            // Absent where no pod was connected.
            let _ = host::run("ip", &["link", "delete", &self.bridge(runtime)]);
        }
    }

    /// At most 15 bytes, as the kernel wants it.
    fn bridge(&self, runtime: &str) -> String {
        format!("bp{}{}", runtime.chars().next().unwrap_or_default(), self.id)
    }
}
