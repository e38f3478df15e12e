//! The Debian packages that tests need.

use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// Name and what for.
const PACKAGES: &[(&str, &str)] = &[
    ("docker-registry", "the registry that images are pulled from"),
    ("containernetworking-plugins", "bridge, host-local, portmap"),
    ("busybox-static", "what test images are made of"),
    ("iproute2", "to look at namespaces and addresses"),
    ("iptables", "portmap's tool"),
    ("nftables", "the tables behind it"),
    ("openssl", "certificates for the registry over HTTPS"),
    ("e2fsprogs", "small file systems that fill up"),
];

/// Installs what is absent.
pub(crate) fn install() -> Result<()> {
    let absent: Vec<&str> =
        PACKAGES.iter().map(|(name, _)| *name).filter(|name| !installed(name)).collect();
    if absent.is_empty() {
        return Ok(());
    }
    for name in &absent {
        let reason = PACKAGES.iter().find(|(known, _)| known == name).map_or("", |(_, why)| why);
        println!("{name} is needed: {reason}");
    }
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!("no apt-get here; please install: {}", absent.join(" "));
    }
    sh::run(apt().args(["-qq", "update"]))?;
    sh::run(apt().args(["-qq", "install", "-y", "--no-install-recommends"]).args(&absent))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", name])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
