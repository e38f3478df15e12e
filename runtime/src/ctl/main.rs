//! `berthctl`: the operator's command. Everything is done by the daemon; here it is asked for and
//! shown. docs/berthctl.md describes it.
//!
//! - `args`: the command line. `client`: the way to the daemon. `outcome`: errors and exit codes.
//! - `image`: images, by CRI and the control service. `archive`, `save`: archives in and out.
//! - `upkeep`: the store's health and its use of the disk.
//! - `auth`: credentials. `show/`: results and progress, for people and for programs.
#![forbid(unsafe_code)]

mod archive;
mod args;
mod auth;
mod client;
mod image;
mod outcome;
mod save;
mod show;
mod upkeep;

use std::io::Write;
use std::process::ExitCode;

use args::{Args, Command};
use clap::Parser;
use outcome::{Failure, Outcome};

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(async {
                tokio::select! {
                    result = run(args) => result,
                    _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
                }
            });
            // A thread may be waiting for standard input for ever.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::io("start", "the runtime", error)),
    };
    let failure = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    // Standard error may be gone; there is nobody else to tell.
    let _told = writeln!(std::io::stderr(), "berthctl: {}", failure.report());
    ExitCode::from(failure.code())
}

async fn run(args: Args) -> Outcome {
    let Args { global, command } = args;
    match command {
        Command::Image { command } => Box::pin(image::run(&global, command)).await,
        Command::Fsck { only, repair } => upkeep::fsck(&global, only, repair).await,
        Command::Du { all } => upkeep::du(&global, all).await,
        Command::Gc { dry_run, explain: None } => upkeep::gc(&global, dry_run).await,
        Command::Gc { explain: Some(name), .. } => upkeep::explain(&global, &name).await,
    }
}
