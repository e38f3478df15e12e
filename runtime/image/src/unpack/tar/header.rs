//! A tar header's 512 bytes.

use super::Kind;

pub(super) const BLOCK: usize = 512;

pub(super) fn kind(header: &[u8; BLOCK], path: &[u8]) -> Result<Kind, &'static str> {
    let device = || -> Result<(u32, u32), &'static str> {
        let part = |at| unsigned(field(header, at, 8)).and_then(|n| u32::try_from(n).ok());
        part(329).zip(part(337)).ok_or("has a malformed device number")
    };
    match type_flag(header) {
        // Before ustar, directories were files whose name ends in a slash.
        b'\0' | b'0' if path.ends_with(b"/") => Ok(Kind::Directory),
        b'\0' | b'0' | b'7' => Ok(Kind::File),
        b'1' => Ok(Kind::HardLink),
        b'2' => Ok(Kind::Symlink),
        b'3' => device().map(|(major, minor)| Kind::CharDevice { major, minor }),
        b'4' => device().map(|(major, minor)| Kind::BlockDevice { major, minor }),
        b'5' => Ok(Kind::Directory),
        b'6' => Ok(Kind::Fifo),
        b'S' => Err("is a sparse file, which Berth does not unpack"),
        _ => Err("has an unknown type"),
    }
}

pub(super) fn header_path(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = terminated(field(header, 0, 100));
    let prefix = terminated(field(header, 345, 155));
    // GNU's own magic ("ustar  ") uses the prefix field for other things.
    if field(header, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

pub(super) fn field(header: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    header.get(at..at + len).unwrap_or_default()
}

pub(super) fn type_flag(header: &[u8; BLOCK]) -> u8 {
    header.get(156).copied().unwrap_or_default()
}

pub(super) fn terminated(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// Octal text, or GNU's base 256 when the first bit is set.
pub(super) fn signed(bytes: &[u8]) -> Option<i64> {
    match bytes.split_first()? {
        (first, rest) if first & 0x80 != 0 => {
            let negative = first & 0x40 != 0;
            let top =
                if negative { i64::from(first | 0x80) - 0x100 } else { i64::from(first & 0x7f) };
            rest.iter().try_fold(top, |n, &b| n.checked_mul(256)?.checked_add(i64::from(b)))
        }
        _ => {
            let text = std::str::from_utf8(terminated(bytes)).ok()?.trim_matches(' ');
            if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
        }
    }
}

pub(super) fn unsigned(bytes: &[u8]) -> Option<u64> {
    signed(bytes).and_then(|n| u64::try_from(n).ok())
}

/// The checksum counts its own field as spaces; old tars summed signed bytes.
pub(super) fn checksum_matches(header: &[u8; BLOCK]) -> bool {
    let Some(wanted) = signed(field(header, 148, 8)) else { return false };
    let byte = |(at, &b): (usize, &u8)| if (148..156).contains(&at) { b' ' } else { b };
    let plain: i64 = header.iter().enumerate().map(byte).map(i64::from).sum();
    let old: i64 = header.iter().enumerate().map(byte).map(|b| i64::from(b.cast_signed())).sum();
    wanted == plain || wanted == old
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe];
        let table: &[(&[u8], Option<i64>)] = &[
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&negative, Some(-2)),
            (&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
            (b"0x12", None),
            (b"9", None),
            (b"6 4", None),
        ];
        for (bytes, wanted) in table {
            assert_eq!(signed(bytes), *wanted, "{bytes:?}");
        }
        assert_eq!(unsigned(&negative), None);
    }
}
