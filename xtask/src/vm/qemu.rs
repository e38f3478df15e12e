//! One machine's life: it boots, runs its plan, turns itself off. What it says is passed on.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::base::{self, Base};
use super::results::{End, Mark, Outcome, mark};
use super::suites::Suite;
use super::{Place, Plan};
use crate::sh;

/// To the first program's first line, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
/// What suites may be late by, beyond their own limit, which the machine itself keeps.
const SLACK: Duration = Duration::from_secs(30);
const OFF: Duration = Duration::from_secs(60);

/// Boots, and answers how each suite ended.
pub(crate) fn run(
    place: &Place,
    base: &Base,
    payload: &Path,
    plan: &Plan<'_>,
) -> Result<Vec<Outcome>> {
    let console = place.join("console.log");
    let _ = fs::remove_file(&console);
    // /tmp, and two empty disks for suites that make file systems.
    let tmp = place.join("tmp.img");
    base::disk(&tmp, "8G", None)?;
    let spare = [place.join("spare-1.img"), place.join("spare-2.img")];
    for disk in &spare {
        fs::File::create(disk)?.set_len(4 << 30)?;
    }
    let mut qemu = command(base, &console, plan.systemd);
    for disk in [payload, &tmp].into_iter().chain(spare.iter().map(AsRef::as_ref)) {
        qemu.arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
    }
    sh::show(&qemu);
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut machine = Machine { child: child.context("run qemu-system-x86_64")? };
    let lines = machine.lines()?;
    let outcomes = follow(&lines, plan);
    machine.end();
    outcomes.with_context(|| tail(&console))
}

fn command(base: &Base, console: &Path, systemd: bool) -> Command {
    let init = if systemd {
        "/lib/systemd/systemd systemd.unit=berth-vm.service"
    } else {
        "/berth/guest/init.sh"
    };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]);
    qemu.args(["-smp", "2", "-m", "3072", "-nic", "none", "-no-reboot"]);
    qemu.args(["-display", "none", "-monitor", "none"]);
    qemu.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    qemu.arg("-kernel").arg(&base.kernel).arg("-initrd").arg(&base.initrd);
    qemu.args(["-append", &format!("console=ttyS0 quiet panic=-1 vm_init={init}")]);
    // Written to by the machine, and as before at the next boot.
    qemu.arg("-drive")
        .arg(format!("file={},if=virtio,format=raw,cache=unsafe,snapshot=on", base.disk.display()));
    qemu
}

/// The emulator, which ends with this.
struct Machine {
    child: Child,
}

impl Machine {
    /// What it says on its second serial line, line by line.
    fn lines(&mut self) -> Result<Receiver<String>> {
        let output: ChildStdout = self.child.stdout.take().context("qemu's output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(lines)
    }

    fn end(&mut self) {
        // Both fail only for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads to the end, with a deadline for each stage.
fn follow(lines: &Receiver<String>, plan: &Plan<'_>) -> Result<Vec<Outcome>> {
    let mut deadline = Instant::now() + BOOT;
    let mut up = false;
    let mut outcomes: Vec<Outcome> = Vec::new();
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(_) if !up => bail!("the virtual machine did not boot in {} s", BOOT.as_secs()),
            Err(why) => return Ok(lost(outcomes, plan.suites, why)),
        };
        writeln!(std::io::stdout(), "{}", line.trim_end_matches('\r'))?;
        match mark(&line) {
            Some(Mark::Up(_)) => {
                up = true;
                deadline = Instant::now() + SLACK;
            }
            Some(Mark::Begin(name)) => {
                let suite = plan.suites.iter().find(|suite| suite.name == name);
                let limit = suite.map_or(Duration::ZERO, |suite| plan.limit(suite));
                deadline = Instant::now() + limit + SLACK;
            }
            Some(Mark::End(outcome)) => {
                outcomes.push(outcome);
                deadline = Instant::now() + SLACK;
            }
            Some(Mark::Done) => return finish(lines, outcomes),
            None => {}
        }
    }
}

/// Lets the machine turn itself off, which shows that no suite left the kernel stuck.
fn finish(lines: &Receiver<String>, outcomes: Vec<Outcome>) -> Result<Vec<Outcome>> {
    let deadline = Instant::now() + OFF;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(outcomes),
            Err(RecvTimeoutError::Timeout) => bail!("the virtual machine did not turn off"),
        }
    }
}

/// Every suite that has not ended is lost.
fn lost(mut outcomes: Vec<Outcome>, suites: &[&Suite], why: RecvTimeoutError) -> Vec<Outcome> {
    println!("the virtual machine is gone or stuck: {why}");
    for suite in suites {
        if !outcomes.iter().any(|outcome| outcome.name == suite.name) {
            outcomes.push(Outcome { name: suite.name.to_owned(), end: End::Lost });
        }
    }
    outcomes
}

/// The last the kernel said.
fn tail(console: &Path) -> String {
    let bytes = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
    format!("the kernel's console ({}) ends with:\n{}", console.display(), last.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::suites;
    use super::*;

    fn said(lines: &[&str]) -> Receiver<String> {
        let (sender, receiver) = channel();
        for line in lines {
            sender.send((*line).to_owned()).unwrap();
        }
        receiver
    }

    fn plan<'a>(suites: &'a [&'a Suite]) -> Plan<'a> {
        Plan { suites, set: &[], limit: None, systemd: false }
    }

    #[test]
    fn suites_that_the_machine_does_not_finish_are_lost() {
        let two = suites::choose(&["machine".into(), "engine".into()], false, false).unwrap();
        let lines =
            said(&["@@vm up 6", "@@vm begin machine", "@@vm end machine 0 3", "@@vm begin engine"]);
        let outcomes = follow(&lines, &plan(&two)).unwrap();
        let passed: Vec<(&str, bool)> =
            outcomes.iter().map(|outcome| (outcome.name.as_str(), outcome.passed())).collect();
        assert_eq!(passed, [("machine", true), ("engine", false)]);
        assert_eq!(outcomes.last().unwrap().end, End::Lost);
    }

    #[test]
    fn a_machine_that_does_not_boot_is_an_error() {
        let error = follow(&said(&["SeaBIOS"]), &plan(&[])).unwrap_err();
        assert!(error.to_string().contains("did not boot"), "{error}");
    }
}
