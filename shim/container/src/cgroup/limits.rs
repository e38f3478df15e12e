//! Limits as a list of files to write, and the writing.

use std::io;
use std::path::PathBuf;

use berth_sys::cgroupfs;

use super::Cgroup;
use crate::error::{Error, Result, StepExt};

/// When limits are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Into a new, empty cgroup.
    Create,
    /// Into one with processes; what isn't named stays.
    Update,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// v1: the controller whose hierarchy holds the file. Empty on v2.
    pub(super) controller: &'static str,
    /// File names to try; the first that exists is written.
    pub(super) files: Vec<String>,
    /// The value.
    pub(super) value: String,
    /// A machine without the file goes without the limit (and a warning).
    pub(super) optional: bool,
}

impl Setting {
    pub(super) fn new(
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        let files = vec![file.into()];
        Self { controller, files, value: value.to_string(), optional: false }
    }

    pub(super) fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    pub(super) fn or_file(mut self, file: &str) -> Self {
        self.files.push(file.to_owned());
        self
    }

    fn is(&self, file: &str) -> bool {
        self.files.iter().any(|f| f == file)
    }
}

/// Writes them in order.
pub(super) fn apply(
    cgroup: &Cgroup,
    settings: &[Setting],
    warnings: &mut Vec<String>,
) -> Result<()> {
    for (at, setting) in settings.iter().enumerate() {
        let Some(file) = locate(cgroup, setting) else {
            let what = format!("cgroup limit {}={}", setting.files.join(" or "), setting.value);
            if setting.optional {
                warnings.push(format!("{what} left out: this machine doesn't have it"));
                continue;
            }
            return Err(Error::InvalidSpec {
                field: "linux.resources".into(),
                reason: format!("{what}: this machine doesn't have it"),
            });
        };
        let written = write(cgroup, setting, &file, settings.get(at + 1));
        written.step(|| format!("write {:?} to {}", setting.value, file.display()))?;
    }
    Ok(())
}

/// memory.limit_in_bytes can't go above the present memory+swap limit: where it is refused, the
/// new memory+swap limit (which follows in the list) goes first.
fn write(
    cgroup: &Cgroup,
    setting: &Setting,
    file: &std::path::Path,
    next: Option<&Setting>,
) -> io::Result<()> {
    let first = cgroupfs::write(file, &setting.value);
    let swap = next.filter(|n| n.is("memory.memsw.limit_in_bytes"));
    match (first, swap) {
        (Err(err), Some(swap)) if err.raw_os_error() == Some(22) => {
            let Some(swap_file) = locate(cgroup, swap) else { return Err(err) };
            cgroupfs::write(&swap_file, &swap.value)?;
            cgroupfs::write(file, &setting.value)
        }
        (result, _) => result,
    }
}

fn locate(cgroup: &Cgroup, setting: &Setting) -> Option<PathBuf> {
    let dir = match setting.controller {
        "" => cgroup.dir_v2(),
        controller => cgroup.dir_v1(controller),
    }?;
    setting.files.iter().map(|file| dir.join(file)).find(|path| path.exists())
}
