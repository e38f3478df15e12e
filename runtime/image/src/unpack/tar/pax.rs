//! PAX extended headers.

/// The kernel's XATTR_SIZE_MAX.
const MAX_XATTR: usize = 64 << 10;

/// What PAX records say of an entry, or of all that follow.
#[derive(Debug, Default, Clone)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: bool,
}

impl Pax {
    /// Takes records of the form `LENGTH KEY=VALUE\n`.
    pub(super) fn read(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "has a malformed PAX header";
        while !data.is_empty() && data.iter().any(|&b| b != 0) {
            let space = data.iter().position(|&b| b == b' ').ok_or(MALFORMED)?;
            let digits = data.get(..space).and_then(|d| std::str::from_utf8(d).ok());
            let length: usize = digits.and_then(|d| d.parse().ok()).ok_or(MALFORMED)?;
            let record = data.get(space + 1..length).ok_or(MALFORMED)?;
            let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or(MALFORMED)?;
            let (key, value) = record.split_at(equals);
            self.set(key, value.get(1..).unwrap_or_default())?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let text = || std::str::from_utf8(value).map_err(|_| "has a malformed PAX value");
        let number = || text()?.parse::<u64>().map_err(|_| "has a malformed PAX number");
        // An empty value takes the record back.
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| value.to_vec()),
            b"linkpath" => self.link = present.then(|| value.to_vec()),
            b"size" => self.size = present.then(number).transpose()?,
            b"uid" => self.uid = present.then(number).transpose()?,
            b"gid" => self.gid = present.then(number).transpose()?,
            b"mtime" => self.mtime = if present { Some(pax_time(text()?)?) } else { None },
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err("has a malformed extended attribute name");
        }
        if value.len() > MAX_XATTR {
            return Err("has an extended attribute longer than 64 KiB");
        }
        self.xattrs.retain(|(known, _)| known != name);
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// These records, and those of `global` where these say nothing.
    pub(super) fn over(self, global: &Self) -> Self {
        let mut xattrs = global.xattrs.clone();
        xattrs.retain(|(name, _)| !self.xattrs.iter().any(|(own, _)| own == name));
        xattrs.extend(self.xattrs);
        Self {
            path: self.path.or_else(|| global.path.clone()),
            link: self.link.or_else(|| global.link.clone()),
            size: self.size.or(global.size),
            uid: self.uid.or(global.uid),
            gid: self.gid.or(global.gid),
            mtime: self.mtime.or(global.mtime),
            xattrs,
            sparse: self.sparse || global.sparse,
        }
    }
}

/// Seconds with an optional fraction, possibly negative; nanoseconds count upwards.
fn pax_time(text: &str) -> Result<(i64, u32), &'static str> {
    const MALFORMED: &str = "has a malformed PAX time";
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| MALFORMED)?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(MALFORMED);
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| MALFORMED)?;
    if whole.starts_with('-') && nanos > 0 {
        return Ok((seconds.checked_sub(1).ok_or(MALFORMED)?, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_later_ones_win() {
        let mut pax = Pax::default();
        let data = b"9 path=a\n9 path=b\n20 SCHILY.xattr.u=1\n20 SCHILY.xattr.u=2\n7 uid=\n\0\0";
        pax.read(data).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.xattrs, [(b"u".to_vec(), b"2".to_vec())]);
        assert_eq!(pax.uid, None);
        for bad in
            [&b"path=a\n"[..], b"8 path=a\n", b"99 path=a\n", b"9 pathxa\n", b"0 \n", b"9 path=a"]
        {
            assert!(Pax::default().read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_an_entry_says_goes_before_what_was_said_for_all() {
        let pax = |data: &[u8]| {
            let mut pax = Pax::default();
            pax.read(data).unwrap();
            pax
        };
        let global = pax(b"8 uid=1\n8 gid=2\n20 SCHILY.xattr.g=1\n");
        let both = pax(b"8 uid=3\n20 SCHILY.xattr.e=2\n").over(&global);
        assert_eq!((both.uid, both.gid, both.xattrs.len()), (Some(3), Some(2), 2));
    }

    #[test]
    fn times_may_be_negative_and_have_any_number_of_digits() {
        let table = [
            ("0", Ok((0, 0))),
            ("12.5", Ok((12, 500_000_000))),
            ("12.0000000019", Ok((12, 1))),
            ("-1", Ok((-1, 0))),
            ("-0.25", Ok((-1, 750_000_000))),
            ("-1.000", Ok((-1, 0))),
        ];
        for (text, wanted) in table {
            assert_eq!(pax_time(text), wanted, "{text}");
        }
        for bad in ["", ".", "x", "1.-2", "1.5.5", "99999999999999999999", "1e3"] {
            assert!(pax_time(bad).is_err(), "{bad}");
        }
    }
}
