//! The one program inside test images and the demo's image: static, small, many commands.
//!
//! `berth-app COMMAND ARGS...`, or a link named as the command. Exit code 2: wrong usage;
//! 1: the command failed, with the reason on stderr.
#![forbid(unsafe_code)]

mod files;
mod process;
mod streams;

use std::io;
use std::process::ExitCode;

/// What a command answers: its exit code, or why it failed.
type Outcome = io::Result<u8>;

/// One command: its name, its arguments for the usage text, and what runs it.
struct Command {
    name: &'static str,
    usage: &'static str,
    run: fn(&[String]) -> Outcome,
}

const COMMANDS: &[Command] = &[
    Command { name: "echo", usage: "TEXT...", run: streams::echo },
    Command { name: "complain", usage: "TEXT... (on stderr)", run: streams::complain },
    Command { name: "print", usage: "TEXT (no newline)", run: streams::print },
    Command { name: "lines", usage: "N BYTES [out|err|both]", run: streams::lines },
    Command { name: "flood", usage: "BYTES [LINE [BLOCK]]", run: streams::flood },
    Command { name: "tick", usage: "MILLISECONDS [N]", run: streams::tick },
    Command { name: "tee", usage: "FILE", run: streams::tee },
    Command { name: "cat", usage: "[FILE...]", run: streams::cat },
    Command {
        name: "serve",
        usage: "PORT TEXT (TCP: says TEXT to each caller)",
        run: streams::serve,
    },
    Command { name: "pour", usage: "PORT BYTES (TCP: so much to each caller)", run: streams::pour },
    Command { name: "dial", usage: "ADDRESS:PORT", run: streams::dial },
    Command { name: "write", usage: "FILE TEXT...", run: files::write },
    Command { name: "fill", usage: "FILE MIB", run: files::fill },
    Command { name: "ls", usage: "DIRECTORY", run: files::ls },
    Command { name: "stat", usage: "FILE...", run: files::stat },
    Command { name: "await", usage: "FILE [EXIT]", run: files::wait_for },
    Command { name: "sleep", usage: "SECONDS", run: process::sleep },
    Command { name: "pause", usage: "(until SIGTERM or SIGINT)", run: process::pause },
    Command { name: "exit", usage: "N", run: process::exit },
    Command { name: "raise", usage: "SIGNAL", run: process::raise },
    Command { name: "alloc", usage: "MIB [SECONDS]", run: process::alloc },
    Command { name: "signal-trap", usage: "[EXIT]", run: process::signal_trap },
    Command { name: "ignore-term", usage: "", run: process::ignore_term },
    Command { name: "forkbomb", usage: "N [SECONDS]", run: process::forkbomb },
    Command { name: "tree", usage: "DEPTH SECONDS", run: process::tree },
    Command { name: "env", usage: "", run: process::env },
    Command { name: "id", usage: "", run: process::id },
    Command { name: "pwd", usage: "", run: process::pwd },
    Command { name: "args", usage: "...", run: process::args },
    Command { name: "tty", usage: "", run: process::tty },
];

fn main() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some((command, args)) = choose(&words) else {
        usage();
        return ExitCode::from(2);
    };
    match (command.run)(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            eprintln!("usage: {} {} ({error})", command.name, command.usage);
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("{}: {error}", command.name);
            ExitCode::FAILURE
        }
    }
}

/// The command that the program's own name, else its first argument, names.
fn choose(words: &[String]) -> Option<(&'static Command, &[String])> {
    let (own, rest) = words.split_first()?;
    let named = |name: &str| COMMANDS.iter().find(|command| command.name == name);
    if let Some(command) = named(own.rsplit('/').next()?) {
        return Some((command, rest));
    }
    let (first, rest) = rest.split_first()?;
    Some((named(first)?, rest))
}

fn usage() {
    eprintln!("usage: berth-app COMMAND ...");
    for command in COMMANDS {
        eprintln!("  {} {}", command.name, command.usage);
    }
}

/// The argument at `index`; InvalidInput where it is missing.
fn text(args: &[String], index: usize) -> io::Result<&str> {
    args.get(index).map(String::as_str).ok_or_else(|| invalid(&format!("argument {index} missing")))
}

/// The argument at `index` as a number; `default` where it is missing and there is one.
fn number<T: std::str::FromStr>(
    args: &[String],
    index: usize,
    default: Option<T>,
) -> io::Result<T> {
    match (args.get(index), default) {
        (None, Some(default)) => Ok(default),
        (word, _) => word
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| invalid(&format!("argument {index} is no number"))),
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_named_by_the_program_or_the_first_argument() {
        for (line, name, rest) in [
            ("/bin/berth-app echo a b", "echo", 2),
            ("/bin/echo a b", "echo", 2),
            ("sleep 1", "sleep", 1),
            ("/app exit 3", "exit", 1),
        ] {
            let words = words(line);
            let (command, args) = choose(&words).unwrap();
            assert_eq!((command.name, args.len()), (name, rest), "{line}");
        }
        for line in ["/bin/berth-app", "/bin/berth-app nonsense"] {
            assert!(choose(&words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn numbers_are_checked() {
        let args = words("7 x");
        assert_eq!(number(&args, 0, None::<u8>).unwrap(), 7);
        assert!(number(&args, 1, Some(1_u8)).is_err());
        assert_eq!(number(&args, 2, Some(9_u8)).unwrap(), 9);
        assert!(number(&args, 2, None::<u8>).is_err());
    }
}
