//! Writing tars: regular files and directories under short names; all else is never needed.
//!
//! POSIX pax(1), "ustar Interchange Format". Two equal archives have equal bytes: times and
//! owners are zero.

/// The unit of a tar.
const BLOCK: usize = 512;
/// The end marker.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// What eleven octal digits can say. More goes in binary, as GNU and star write it.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// The header of a file of this size; a name that ends with a slash is a directory's.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let is_dir = name.ends_with('/');
    let mut block = [0_u8; BLOCK];
    put(&mut block, 0, name.as_bytes());
    put(&mut block, 100, if is_dir { b"0000755" } else { b"0000444" });
    put(&mut block, 108, b"0000000\x000000000\0");
    if size <= MAX_OCTAL {
        put(&mut block, 124, format!("{size:011o}").as_bytes());
    } else {
        put(&mut block, 124, &[0x80, 0, 0, 0]);
        put(&mut block, 128, &size.to_be_bytes());
    }
    put(&mut block, 136, b"00000000000\0        ");
    put(&mut block, 156, if is_dir { b"5" } else { b"0" });
    put(&mut block, 257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Zeros after a file's content.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// What a file of this size takes, header and padding included.
pub(super) fn whole(size: u64) -> u64 {
    size.saturating_add(BLOCK as u64).saturating_add(padding(size))
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::unpack::{MemberKind, each_member};

    #[test]
    fn what_is_written_is_read() {
        let name = format!("blobs/sha256/{}", "a".repeat(64));
        let mut tar = header("blobs/", 0).to_vec();
        tar.extend(header(&name, 5));
        tar.extend(b"hello");
        tar.extend(vec![0; usize::try_from(padding(5)).unwrap()]);
        tar.extend(END);
        let mut seen = Vec::new();
        each_member(tar.as_slice(), |member, content| {
            let mut text = String::new();
            content.read_to_string(&mut text).unwrap();
            seen.push((member.path, matches!(member.kind, MemberKind::Directory), text));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [("blobs/".into(), true, "".into()), (name, false, "hello".into())]);
    }

    #[test]
    fn sizes_beyond_octal_are_read_too() {
        let size = (8 << 30) + 7;
        let mut tar = header("large", size).to_vec();
        tar.extend([0; 512]);
        let mut seen = None;
        let read = each_member(tar.as_slice(), |member, _| {
            let MemberKind::File { size } = member.kind else { return Ok(()) };
            seen = Some(size);
            Ok(())
        });
        assert!(read.is_err(), "its content is missing");
        assert_eq!(seen, Some(size));
    }
}
