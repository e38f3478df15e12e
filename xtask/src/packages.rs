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
    ("python3-kubernetes", "Kubernetes' Python client, a user of streams"),
    ("kubernetes-client", "kubectl, another; not installed where there is a kubectl already"),
    ("e2fsprogs", "small file systems that fill up"),
];

/// What the virtual machine needs on this one; its own packages are in `vm::debs`.
const VM_PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "the emulated machine of vm-test"),
    ("e2fsprogs", "its disks"),
    ("binutils", "strip, to keep its disk small"),
];

/// Installs what is absent for the tests.
pub(crate) fn install() -> Result<()> {
    ensure(PACKAGES)
}

/// Installs what is absent for `vm-test`.
pub(crate) fn install_for_vm() -> Result<()> {
    ensure(VM_PACKAGES)
}

fn ensure(packages: &[(&str, &str)]) -> Result<()> {
    let absent: Vec<&str> = packages
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !installed(name) && !has_kubectl(name))
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    for name in &absent {
        let reason = packages.iter().find(|(known, _)| known == name).map_or("", |(_, why)| why);
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

/// Other packages have kubectl, too, at the same path.
fn has_kubectl(package: &str) -> bool {
    package == "kubernetes-client" && std::path::Path::new("/usr/bin/kubectl").exists()
}

fn installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", name])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
