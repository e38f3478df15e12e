//! Commands that read and write streams: what logs, attach and port forwarding are tested with.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::{Outcome, invalid, number, text};

pub(crate) fn echo(args: &[String]) -> Outcome {
    writeln!(io::stdout(), "{}", args.join(" "))?;
    Ok(0)
}

pub(crate) fn complain(args: &[String]) -> Outcome {
    writeln!(io::stderr(), "{}", args.join(" "))?;
    Ok(0)
}

pub(crate) fn print(args: &[String]) -> Outcome {
    write!(io::stdout(), "{}", args.join(" "))?;
    io::stdout().flush()?;
    Ok(0)
}

/// Each line is its number, padded with `x` to the wanted length; odd ones on stderr with `both`.
pub(crate) fn lines(args: &[String]) -> Outcome {
    let count: u64 = number(args, 0, None)?;
    let bytes: usize = number(args, 1, None)?;
    let stream = args.get(2).map_or("out", String::as_str);
    let mut out = io::BufWriter::new(io::stdout());
    let mut err = io::BufWriter::new(io::stderr());
    for index in 0..count {
        let line = format!("{:x<bytes$}\n", format!("{index} "));
        match (stream, index % 2) {
            ("out", _) | ("both", 0) => out.write_all(line.as_bytes())?,
            ("err" | "both", _) => err.write_all(line.as_bytes())?,
            _ => return Err(invalid("the stream is out, err or both")),
        }
    }
    out.flush()?;
    err.flush()?;
    Ok(0)
}

/// Lines of `x`, made once and written many times, BLOCK bytes to a write: what the log path
/// is measured with. The last line is `end`.
pub(crate) fn flood(args: &[String]) -> Outcome {
    let bytes: usize = number(args, 0, None)?;
    let line: usize = number(args, 1, Some(120))?;
    let block: usize = number(args, 2, Some(65536))?;
    if line == 0 || block < line {
        return Err(invalid("a block holds at least one line"));
    }
    let text = format!("{}\n", "x".repeat(line - 1)).repeat(block / line);
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for _ in 0..bytes / text.len() {
        out.write_all(text.as_bytes())?;
    }
    out.write_all(b"end\n")?;
    Ok(0)
}

/// Counts lines, one per period; for ever without N.
pub(crate) fn tick(args: &[String]) -> Outcome {
    let period = Duration::from_millis(number(args, 0, None)?);
    let count: u64 = number(args, 1, Some(u64::MAX))?;
    for index in 0..count {
        writeln!(io::stdout(), "tick {index}")?;
        std::thread::sleep(period);
    }
    Ok(0)
}

pub(crate) fn tee(args: &[String]) -> Outcome {
    let mut file = File::create(text(args, 0)?)?;
    let mut buffer = [0; 4096];
    loop {
        let count = io::stdin().read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
            return Ok(0);
        };
        file.write_all(bytes)?;
        io::stdout().write_all(bytes)?;
        io::stdout().flush()?;
    }
}

pub(crate) fn cat(args: &[String]) -> Outcome {
    let mut out = io::stdout().lock();
    if args.is_empty() {
        io::copy(&mut io::stdin().lock(), &mut out)?;
    }
    for path in args {
        io::copy(&mut File::open(path)?, &mut out)?;
    }
    out.flush()?;
    Ok(0)
}

/// Listens on both address families and answers callers one after another.
pub(crate) fn serve(args: &[String]) -> Outcome {
    let port: u16 = number(args, 0, None)?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    writeln!(io::stdout(), "listening on {port}")?;
    let answer = format!("{}\n", text(args, 1)?);
    for caller in listener.incoming() {
        // A caller that hangs up early is its own business.
        drop(caller.and_then(|mut caller| caller.write_all(answer.as_bytes())));
    }
    Ok(0)
}

/// Sends much to each caller, one after another.
pub(crate) fn pour(args: &[String]) -> Outcome {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, number(args, 0, None)?))?;
    let bytes: usize = number(args, 1, None)?;
    let block = vec![b'x'; 256 << 10];
    for caller in listener.incoming() {
        let mut caller = caller?;
        let mut left = bytes;
        while let Some(part) = block.get(..left.min(block.len())).filter(|part| !part.is_empty()) {
            // A caller that hangs up early is its own business.
            if caller.write_all(part).is_err() {
                break;
            }
            left -= part.len();
        }
    }
    Ok(0)
}

pub(crate) fn dial(args: &[String]) -> Outcome {
    // No names: a static program has no resolver.
    let address: SocketAddr = text(args, 0)?.parse().map_err(|_| invalid("no ADDRESS:PORT"))?;
    let mut stream = TcpStream::connect(address)?;
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(0)
}
