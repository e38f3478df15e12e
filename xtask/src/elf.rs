//! Just enough ELF to prove that a binary is static (elf(5)).

use std::path::Path;

use anyhow::{Context, Result, ensure};

const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;

/// Fails unless the 64-bit little-endian ELF file asks for no loader and no shared library.
pub(crate) fn ensure_static(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let wants = shared_parts(&bytes).with_context(|| format!("parse {}", path.display()))?;
    ensure!(wants.is_empty(), "{} is not static: it has {}", path.display(), wants.join(", "));
    Ok(())
}

/// What makes the file a dynamic one; empty for a static one.
fn shared_parts(elf: &[u8]) -> Result<Vec<String>> {
    ensure!(elf.get(..6) == Some(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let (offset, size, count) = (number(elf, 32, 8)?, number(elf, 54, 2)?, number(elf, 56, 2)?);
    let mut wants = Vec::new();
    for index in 0..count {
        let header = index * size + offset;
        match number(elf, header, 4)? {
            PT_INTERP => wants.push("a program interpreter".to_owned()),
            PT_DYNAMIC => {
                let (start, bytes) = (number(elf, header + 8, 8)?, number(elf, header + 32, 8)?);
                let needed = needed(elf, start, bytes)?;
                wants.extend((needed > 0).then(|| format!("{needed} shared libraries")));
            }
            _ => {}
        }
    }
    Ok(wants)
}

/// How many libraries the dynamic section from `start` on names.
fn needed(elf: &[u8], start: u64, bytes: u64) -> Result<usize> {
    let mut count = 0;
    for entry in (start..start + bytes).step_by(16) {
        count += usize::from(number(elf, entry, 8)? == DT_NEEDED);
    }
    Ok(count)
}

/// The little-endian number of `width` bytes at `offset`.
fn number(elf: &[u8], offset: u64, width: usize) -> Result<u64> {
    let start = usize::try_from(offset)?;
    let end = start.checked_add(width).context("an offset past all memory")?;
    let bytes = elf.get(start..end).with_context(|| format!("cut short at byte {offset}"))?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_apart() {
        // This very test binary: cargo links it against the C library.
        let own = std::fs::read("/proc/self/exe").unwrap();
        let wants = shared_parts(&own).unwrap();
        assert!(wants.iter().any(|part| part.contains("interpreter")), "{wants:?}");
        assert!(wants.iter().any(|part| part.contains("libraries")), "{wants:?}");
    }

    #[test]
    fn a_file_without_program_headers_is_static_and_a_short_one_an_error() {
        let mut bare = vec![0_u8; 64];
        bare[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert!(shared_parts(&bare).unwrap().is_empty());
        assert!(shared_parts(&bare[..57]).is_err());
        assert!(shared_parts(b"#!/bin/sh\n").is_err());
    }
}
