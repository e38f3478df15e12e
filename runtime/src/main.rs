//! `berthd`: arguments, configuration, logging and exit codes. See ARCHITECTURE.md.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use berth_runtime::config::{self, Config};
use berth_runtime::daemon;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "berthd", version)]
struct Args {
    /// The configuration file. Without it /etc/berth/config.toml, which may be absent.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve CRI (what happens without a command).
    Serve,
    /// Look at configurations.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the names of the steps that BERTH_FAILPOINTS can make fail.
    #[cfg(feature = "failpoints")]
    Failpoints,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the defaults as a commented file.
    Default,
    /// Check a file; exit code 1 and a message when it can't be used.
    Check {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; there is nobody else to tell.
            let _told = writeln!(io::stderr(), "berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    match args.command.unwrap_or(Command::Serve) {
        Command::Serve => serve(config::load(args.config.as_deref())?),
        Command::Config { command: ConfigCommand::Default } => print(config::DEFAULT_TEXT),
        Command::Config { command: ConfigCommand::Check { file } } => {
            config::load(Some(&file))?;
            print(&format!("{}: ok\n", file.display()))
        }
        #[cfg(feature = "failpoints")]
        Command::Failpoints => print(&format!("{}\n", berth_runtime::failpoint::NAMES.join("\n"))),
    }
}

/// Two workers serve any node: what takes long is done by shims, plugins and blocking threads.
fn serve(config: Config) -> anyhow::Result<()> {
    log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_name("berthd")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(daemon::run(config));
    // What still runs on blocking threads was cut off by the drain's deadline.
    runtime.shutdown_background();
    Ok(result?)
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = match EnvFilter::try_from_default_env() {
        Ok(filter) => filter,
        Err(_) => EnvFilter::try_new(&config.reloadable.log.level).context("log.level")?,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("write to standard output")
}
