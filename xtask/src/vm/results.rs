//! What the machine says on its second serial line: the suites' output, and marked lines that tell
//! where one begins and how it ended.

/// How one suite ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) end: End,
}

/// The end of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Its program ended, with this status, after so many seconds.
    Ended { status: i32, seconds: u64 },
    /// The machine was gone or stuck before that.
    Lost,
}

/// `timeout` ends with this when it had to kill.
const TIMED_OUT: i32 = 124;

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        matches!(self.end, End::Ended { status: 0, .. })
    }

    /// Its line in a summary.
    pub(crate) fn line(&self) -> String {
        let what = match self.end {
            End::Ended { status: 0, seconds } => format!("ok, {seconds} s"),
            End::Ended { status: TIMED_OUT, seconds } => format!("FAILED: no end in {seconds} s"),
            End::Ended { status, seconds } => format!("FAILED: status {status}, {seconds} s"),
            End::Lost => "FAILED: the machine ended first".to_owned(),
        };
        format!("vm {:<24} {what}", self.name)
    }
}

/// One marked line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// User space is up.
    Up(String),
    Begin(String),
    End(Outcome),
    /// All suites have run; the machine turns itself off.
    Done,
}

/// The mark that a line is, if it is one.
pub(crate) fn mark(line: &str) -> Option<Mark> {
    let (word, rest) = line.trim_end().strip_prefix("@@vm ").map(split)?;
    match word {
        "up" => Some(Mark::Up(rest.to_owned())),
        "begin" => Some(Mark::Begin(rest.to_owned())),
        "done" => Some(Mark::Done),
        "end" => {
            let (name, rest) = split(rest);
            let (status, seconds) = split(rest);
            let end = End::Ended { status: status.parse().ok()?, seconds: seconds.parse().ok()? };
            Some(Mark::End(Outcome { name: name.to_owned(), end }))
        }
        _ => None,
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

/// A line for each suite.
pub(crate) fn print(outcomes: &[Outcome]) {
    println!("\n=== in the virtual machine");
    for outcome in outcomes {
        println!("{}", outcome.line());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_lines_are_told_from_output() {
        assert_eq!(mark("test a ... ok"), None);
        assert_eq!(mark("@@vm begin engine\r\n"), Some(Mark::Begin("engine".to_owned())));
        assert_eq!(mark("@@vm up 6.1.0 sh cpu io"), Some(Mark::Up("6.1.0 sh cpu io".to_owned())));
        assert_eq!(mark("@@vm done"), Some(Mark::Done));
        assert_eq!(mark("@@vm end engine x 3"), None, "no status");
        let Some(Mark::End(outcome)) = mark("@@vm end engine 101 42") else { panic!("an end") };
        assert_eq!(outcome.end, End::Ended { status: 101, seconds: 42 });
        assert!(!outcome.passed());
    }

    #[test]
    fn every_end_has_its_words() {
        let line = |end| Outcome { name: "engine".to_owned(), end }.line();
        let ended = |status| End::Ended { status, seconds: 7 };
        assert!(line(ended(0)).ends_with("ok, 7 s"));
        assert!(line(ended(1)).ends_with("FAILED: status 1, 7 s"));
        assert!(line(ended(124)).ends_with("FAILED: no end in 7 s"));
        assert!(line(End::Lost).ends_with("FAILED: the machine ended first"));
    }
}
