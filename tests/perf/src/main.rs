//! `berth-perf`: a CRI load generator, a comparison of runtimes, and the demo.
//!
//! - [`load`]: one CRI socket, whoever serves it.
//! - [`bench`]: Berth and a peer, both started here; [`instance`], [`slice`], [`cni`], [`disk`]:
//!   their daemons, cgroups, networks and disk; [`report`]: the table.
//! - [`metrics`]: what is measured; [`samples`]: the values; [`pods`]: the requests.
//! - [`images`]: what runs in the containers; [`trees`]: what is pulled;
//!   [`floor`]: what that costs at the least.
//! - [`demo`]: one pod through a daemon of its own, from start to finish.
#![forbid(unsafe_code)]

mod bench;
mod cni;
mod demo;
mod disk;
mod floor;
mod images;
mod instance;
mod load;
mod metrics;
mod pods;
mod report;
mod samples;
mod slice;
mod trees;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "berth-perf", about = "Measures CRI runtimes")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the runtime behind a CRI socket.
    Load(load::Options),
    /// Start Berth and a peer and measure both in turn (as root).
    Bench(bench::Options),
    /// Show one pod's life on a daemon of its own (as root).
    Demo(demo::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Load(options) => load::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Demo(options) => demo::run(options).await,
    }
}
