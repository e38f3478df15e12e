//! Commands on files: what mounts, layers and limits are tested with.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::{Outcome, number, text};

pub(crate) fn write(args: &[String]) -> Outcome {
    let words = args.get(1..).unwrap_or_default();
    fs::write(text(args, 0)?, format!("{}\n", words.join(" ")))?;
    Ok(0)
}

pub(crate) fn fill(args: &[String]) -> Outcome {
    let mut file = File::create(text(args, 0)?)?;
    let count: u64 = number(args, 1, None)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..count {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    Ok(0)
}

pub(crate) fn ls(args: &[String]) -> Outcome {
    let mut names = fs::read_dir(text(args, 0)?)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        writeln!(io::stdout(), "{name}")?;
    }
    Ok(0)
}

/// One line per file: mode (octal, with type), owner, group, links, size, device, path.
pub(crate) fn stat(args: &[String]) -> Outcome {
    for path in args {
        let meta = fs::symlink_metadata(path)?;
        writeln!(
            io::stdout(),
            "{:o} {} {} {} {} {:x} {path}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.size(),
            meta.rdev(),
        )?;
    }
    Ok(0)
}

/// Ends when the file is there: a way to end a container from outside.
pub(crate) fn wait_for(args: &[String]) -> Outcome {
    let path = Path::new(text(args, 0)?);
    let code = number(args, 1, Some(0))?;
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(code)
}
