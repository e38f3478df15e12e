//! Debian's packages, with all that they depend on, unpacked into a root of their own: nothing is
//! installed on this machine, and nothing of it gets into the virtual one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Place;
use crate::sh;

/// What the virtual machine has. The cloud kernel has every file system, device mapper target and
/// packet filter that the suites want, and is at its first program in seconds.
pub(crate) const PACKAGES: &[&str] = &[
    "linux-image-cloud-amd64",
    "kmod",
    "busybox-static",
    "bash",
    "dash",
    "coreutils",
    "findutils",
    "grep",
    "sed",
    "gzip",
    "tar",
    "zstd",
    "procps",
    "util-linux",
    "mount",
    "iproute2",
    "iptables",
    "nftables",
    "containernetworking-plugins",
    "docker-registry",
    "openssl",
    "e2fsprogs",
    "xfsprogs",
    "quota",
    "dmsetup",
    "apparmor",
    "systemd",
    "dbus",
];

/// Brought in by some package's scripts, which nobody runs here.
const LEFT_OUT: &[&str] = &[
    "perl",
    "libperl",
    "python3",
    "libpython3",
    "libicu",
    "initramfs-tools",
    "klibc",
    "debconf",
    "adduser",
];

/// Fetches the packages by apt, as for a machine that has none.
pub(crate) fn fetch(place: &Place) -> Result<Vec<PathBuf>> {
    let (cache, status) = (place.join("debs"), place.join("no-packages"));
    let _ = fs::remove_dir_all(&cache);
    fs::create_dir_all(cache.join("partial"))?;
    fs::write(&status, "")?;
    let fetch = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y", "--download-only"]);
        apt.args(["-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root"]);
        apt.arg("-o").arg(format!("Dir::State::status={}", status.display()));
        apt.arg("-o").arg(format!("Dir::Cache::archives={}", cache.display()));
        apt.arg("install").args(PACKAGES);
        sh::run(&mut apt)
    };
    // The lists of a fresh machine are empty, and those of an old one name versions that are gone.
    if fetch().is_err() {
        sh::run(Command::new("apt-get").args(["-qq", "update"]))?;
        fetch()?;
    }
    let mut debs = Vec::new();
    for entry in fs::read_dir(&cache)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") && wanted(&path) {
            debs.push(path);
        }
    }
    debs.sort();
    Ok(debs)
}

fn wanted(deb: &Path) -> bool {
    let name = deb.file_name().unwrap_or_default().to_string_lossy();
    !LEFT_OUT.iter().any(|prefix| name.starts_with(prefix))
}

/// Unpacks them into `root`, and does what their scripts would have done as far as it is needed.
pub(crate) fn unpack(debs: &[PathBuf], root: &Path) -> Result<()> {
    // /bin and its kind are links into /usr; tar follows those that are there already.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(dir))?;
        symlink(Path::new("usr").join(dir), root.join(dir))?;
    }
    println!("unpacking {} packages into {}", debs.len(), root.display());
    for deb in debs {
        let status = Command::new("dpkg-deb").arg("--extract").arg(deb).arg(root).status();
        if !status.context("run dpkg-deb")?.success() {
            bail!("dpkg-deb --extract {} failed", deb.display());
        }
    }
    // Alternatives, which the packages' scripts would set.
    for tool in ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save"] {
        let link = root.join("usr/sbin").join(tool);
        symlink(format!("{tool}-nft"), &link)
            .with_context(|| format!("make {}", link.display()))?;
    }
    for (file, content) in FILES {
        fs::write(root.join(file), content).with_context(|| format!("write {file}"))?;
    }
    for dir in ["berth", "mnt"] {
        fs::create_dir_all(root.join(dir))?;
    }
    Ok(())
}

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         messagebus:x:100:100::/nonexistent:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nmessagebus:x:100:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost berth-vm\n::1 localhost\n"),
    ("etc/resolv.conf", "nameserver 127.0.0.1\n"),
    ("etc/hostname", "berth-vm\n"),
    ("etc/machine-id", "6265727468766d6265727468766d3031\n"),
    ("etc/fstab", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_scripts_need_is_left_out() {
        let wanted = |name| wanted(&Path::new("/cache").join(name));
        assert!(!wanted("python3-minimal_3.11.2-1_amd64.deb"));
        assert!(!wanted("perl-base_5.36.0-7_amd64.deb"));
        assert!(wanted("systemd_252.39-1_amd64.deb"));
        assert!(wanted("libpcre2-8-0_10.42-1_amd64.deb"));
    }
}
