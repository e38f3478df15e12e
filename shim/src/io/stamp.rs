//! Time as RFC 3339 in UTC with nine digits of fraction, formatted without tables or locks.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Length of every stamp: `2026-11-23T08:40:00.123456789Z`.
pub(crate) const STAMP_LEN: usize = 30;

/// A point in time as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([u8; STAMP_LEN]);

impl Stamp {
    /// The time now.
    pub(crate) fn now() -> Self {
        // A clock before 1970 is told as 1970.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::at(since.as_secs(), since.subsec_nanos())
    }

    /// The time so many seconds and nanoseconds after 1970 (up to the year 9999).
    pub(crate) fn at(seconds: u64, nanos: u32) -> Self {
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let fields: [(usize, usize, u64); 7] = [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, second / 3600),
            (14, 2, second / 60 % 60),
            (17, 2, second % 60),
            (20, 9, u64::from(nanos)),
        ];
        for (start, width, value) in fields {
            let mut rest = value;
            for digit in text.iter_mut().skip(start).take(width).rev() {
                *digit = b"0123456789".get(digit_of(rest)).copied().unwrap_or(b'?');
                rest /= 10;
            }
        }
        Self(text)
    }

    /// The text.
    pub(crate) fn as_bytes(&self) -> &[u8; STAMP_LEN] {
        &self.0
    }
}

fn digit_of(value: u64) -> usize {
    usize::try_from(value % 10).unwrap_or_default()
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

/// Year, month and day of a day number since 1970-01-01. Counts in eras of 400 years that start
/// on March 1st, so that the leap day is a year's last.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_rfc_3339() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199, 5, "2024-02-29T23:59:59.000000005Z"),
            (1_795_423_383, 120_000_000, "2026-11-23T08:43:03.120000000Z"),
            (4_102_444_800, 0, "2100-01-01T00:00:00.000000000Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000000000Z"),
        ];
        for (seconds, nanos, text) in cases {
            assert_eq!(Stamp::at(seconds, nanos).to_string(), text);
        }
    }
}
