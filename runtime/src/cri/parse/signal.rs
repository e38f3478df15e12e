//! Signals of the wire <-> numbers of Linux (all architectures that we build for), signal(7).

use berth_proto::cri::Signal;

use super::field;
use crate::pod::Result;

/// The first and the last signal that a program may use as it likes (glibc's view).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Name and number. Of two names for one number the usual one stands first.
const TABLE: [(Signal, i32); 34] = [
    (Signal::Sighup, 1),
    (Signal::Sigint, 2),
    (Signal::Sigquit, 3),
    (Signal::Sigill, 4),
    (Signal::Sigtrap, 5),
    (Signal::Sigabrt, 6),
    (Signal::Sigiot, 6),
    (Signal::Sigbus, 7),
    (Signal::Sigfpe, 8),
    (Signal::Sigkill, 9),
    (Signal::Sigusr1, 10),
    (Signal::Sigsegv, 11),
    (Signal::Sigusr2, 12),
    (Signal::Sigpipe, 13),
    (Signal::Sigalrm, 14),
    (Signal::Sigterm, 15),
    (Signal::Sigstkflt, 16),
    (Signal::Sigchld, 17),
    (Signal::Sigcld, 17),
    (Signal::Sigcont, 18),
    (Signal::Sigstop, 19),
    (Signal::Sigtstp, 20),
    (Signal::Sigttin, 21),
    (Signal::Sigttou, 22),
    (Signal::Sigurg, 23),
    (Signal::Sigxcpu, 24),
    (Signal::Sigxfsz, 25),
    (Signal::Sigvtalrm, 26),
    (Signal::Sigprof, 27),
    (Signal::Sigwinch, 28),
    (Signal::Sigio, 29),
    (Signal::Sigpoll, 29),
    (Signal::Sigpwr, 30),
    (Signal::Sigsys, 31),
];

/// The number of a `stop_signal`; None for RUNTIME_DEFAULT, and so for a request without one.
pub(super) fn parse(field: &str, value: i32) -> Result<Option<i32>> {
    let signal: Signal = field::choice(field, value)?;
    if signal == Signal::RuntimeDefault {
        return Ok(None);
    }
    let listed = TABLE.iter().find(|(s, _)| *s == signal).map(|&(_, number)| number);
    Ok(listed.or_else(|| realtime(signal.as_str_name())))
}

/// `SIGRTMIN`, `SIGRTMINPLUS3`, `SIGRTMAXMINUS2`, `SIGRTMAX`.
fn realtime(name: &str) -> Option<i32> {
    let step = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i32>().ok() };
    if let Some(rest) = name.strip_prefix("SIGRTMIN") {
        return Some(RTMIN + step(rest.strip_prefix("PLUS").unwrap_or(rest))?);
    }
    let rest = name.strip_prefix("SIGRTMAX")?;
    Some(RTMAX - step(rest.strip_prefix("MINUS").unwrap_or(rest))?)
}

/// The signal with this number; RUNTIME_DEFAULT where the wire has no word for it.
pub(in crate::cri) fn to_cri(number: i32) -> Signal {
    if let Some((signal, _)) = TABLE.iter().find(|(_, n)| *n == number) {
        return *signal;
    }
    let middle = RTMIN + 15;
    let name = match number {
        RTMIN => "SIGRTMIN".to_owned(),
        RTMAX => "SIGRTMAX".to_owned(),
        n if n > RTMIN && n <= middle => format!("SIGRTMINPLUS{}", n - RTMIN),
        n if n > middle && n < RTMAX => format!("SIGRTMAXMINUS{}", RTMAX - n),
        _ => return Signal::RuntimeDefault,
    };
    Signal::from_str_name(&name).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_wire_has_its_number() {
        for value in 1..=65 {
            let name = Signal::try_from(value).unwrap().as_str_name();
            let number = parse("stop_signal", value).unwrap().unwrap();
            assert!((1..=64).contains(&number), "{name} {number}");
        }
        let number = |s: Signal| parse("stop_signal", s.into()).unwrap();
        assert_eq!(number(Signal::RuntimeDefault), None);
        assert_eq!(number(Signal::Sigterm), Some(15));
        assert_eq!(number(Signal::Sigrtmin), Some(34));
        assert_eq!(number(Signal::Sigrtminplus3), Some(37));
        assert_eq!(number(Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(number(Signal::Sigrtmax), Some(64));
        assert!(parse("stop_signal", 66).is_err());
        assert!(parse("stop_signal", -1).is_err());
    }

    #[test]
    fn numbers_come_back_as_signals() {
        for number in (1..=31).chain(34..=64) {
            let signal = to_cri(number);
            assert_eq!(parse("stop_signal", signal.into()).unwrap(), Some(number), "{signal:?}");
        }
        assert_eq!(to_cri(32), Signal::RuntimeDefault);
        assert_eq!(to_cri(15), Signal::Sigterm);
        assert_eq!(to_cri(6), Signal::Sigabrt);
    }
}
