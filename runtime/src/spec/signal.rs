//! Signals by name or number, as images and requests spell them.

use super::refuse;
use crate::pod::Result;
use crate::ports::ImageConfig;

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", 34),
    ("RTMAX", 64),
];
const SIGTERM: i32 = 15;
const LAST: i32 = 64;

/// The signal that asks a container to end: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// [`crate::pod::Error::Invalid`] for an image whose stop signal does not exist.
pub fn stop_signal(asked: Option<i32>, image: &ImageConfig) -> Result<i32> {
    match (asked, image.stop_signal.as_str()) {
        (Some(number), _) if (1..=LAST).contains(&number) => Ok(number),
        (Some(number), _) => Err(refuse("stop_signal", &number.to_string(), "no such signal")),
        (None, "") => Ok(SIGTERM),
        (None, text) => {
            parse(text).ok_or_else(|| refuse("image.config.StopSignal", text, "no such signal"))
        }
    }
}

fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (base, offset) = match name.split_once(['+', '-']) {
        Some((base, offset)) => (base, offset.parse::<i32>().ok()?),
        None => (name, 0),
    };
    let number = NAMES.iter().find(|(known, _)| *known == base)?.1;
    let number = if name.contains('-') { number - offset } else { number + offset };
    // Only real-time signals are counted from their ends.
    let counted = offset == 0 || base.starts_with("RT");
    (counted && (1..=LAST).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_spelt_in_many_ways() {
        let cases = [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX+1", None),
            ("SIGTERM+1", None),
            ("SIGFOO", None),
            ("0", None),
            ("65", None),
        ];
        for (text, number) in cases {
            assert_eq!(parse(text), number, "{text}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let image = |text: &str| ImageConfig { stop_signal: text.into(), ..Default::default() };
        assert_eq!(stop_signal(Some(1), &image("SIGQUIT")).unwrap(), 1);
        assert_eq!(stop_signal(None, &image("SIGQUIT")).unwrap(), 3);
        assert_eq!(stop_signal(None, &image("")).unwrap(), 15);
        assert!(stop_signal(None, &image("x")).is_err());
        assert!(stop_signal(Some(65), &image("")).is_err());
    }
}
