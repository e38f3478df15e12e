//! New ids.

use super::{Error, Result};

/// 32 bytes that nobody can guess.
pub(crate) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = bytes.get_mut(filled..).unwrap_or_default();
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::disk("read random bytes", "", error.into())),
        }
    }
    Ok(bytes)
}
