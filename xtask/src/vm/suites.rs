//! What can run in the virtual machine, and what CI runs of it.

use anyhow::{Result, bail};

/// An integration test: its package's directory, and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Program {
    pub(crate) package: &'static str,
    pub(crate) target: &'static str,
}

impl Program {
    /// Its name on the machine's disk.
    pub(crate) fn file_name(self) -> String {
        format!("{}-{}", self.package.replace('/', "-"), self.target)
    }
}

/// One program's run.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    /// What it shows there that cannot be shown elsewhere.
    what: &'static str,
    /// Whether it is of the subset that CI runs.
    ci: bool,
    /// Whether it needs systemd as the first process.
    systemd: bool,
    /// Its limit.
    pub(crate) seconds: u64,
    /// What runs; `None` where `before` is all.
    pub(crate) program: Option<Program>,
    args: &'static str,
    /// Further variables, `NAME=VALUE`.
    env: &'static str,
    /// Shell commands that come first; the first that fails ends the suite.
    before: &'static str,
}

const fn tests(target: &'static str) -> Program {
    Program { package: "tests", target }
}

const IMAGES: Program = Program { package: "runtime/image", target: "it" };
const POWERCUT: Program = Program { package: "runtime/image", target: "powercut" };
const REORDER: &str = "--nocapture --test-threads 1 replay:: reorder::";
const LOG_WRITES: &str =
    "modprobe -a dm-log-writes loop\nexport BERTH_TEST_LOG_WRITES='/dev/vdd /dev/vde'";

const ENGINE: Program = Program { package: "shim/container", target: "engine" };

/// A suite of the usual kind.
const PLAIN: Suite = Suite {
    name: "",
    what: "",
    ci: false,
    systemd: false,
    seconds: 300,
    program: Some(ENGINE),
    args: "",
    env: "BERTH_VM=1",
    before: "",
};

const SUITES: &[Suite] = &[
    Suite {
        name: "kernel",
        what: "the kernel has what docs/conformance.md says",
        ci: true,
        seconds: 60,
        program: None,
        before: include_str!("guest/kernel.sh"),
        ..PLAIN
    },
    Suite {
        name: "machine",
        what: "a whole life on cgroup v2 leaves nothing",
        ci: true,
        seconds: 120,
        program: Some(tests("machine")),
        ..PLAIN
    },
    Suite {
        name: "engine",
        what: "the engine on cgroup v2 and an older kernel",
        ci: true,
        seconds: 150,
        program: Some(ENGINE),
        ..PLAIN
    },
    Suite {
        name: "limits",
        what: "limits that the CRI asks for, on cgroup v2",
        ci: true,
        seconds: 150,
        program: Some(tests("lifecycle")),
        args: "limits::",
        ..PLAIN
    },
    Suite {
        name: "reorder-ext4",
        what: "images after power cuts that lose, tear and reorder writes, on ext4",
        ci: true,
        seconds: 120,
        program: Some(IMAGES),
        args: REORDER,
        before: LOG_WRITES,
        env: "BERTH_TEST_FS=ext4 BERTH_TEST_POINTS=8",
        ..PLAIN
    },
    Suite {
        name: "reorder-xfs",
        what: "the same on XFS",
        seconds: 300,
        program: Some(IMAGES),
        args: REORDER,
        before: LOG_WRITES,
        env: "BERTH_TEST_FS=xfs BERTH_TEST_POINTS=8",
        ..PLAIN
    },
    Suite {
        name: "quota",
        what: "what a container may write is limited, on ext4 and XFS with project quota",
        seconds: 120,
        program: Some(IMAGES),
        args: "--nocapture --test-threads 1 quota::",
        before: include_str!("guest/quota.sh"),
        ..PLAIN
    },
    Suite {
        name: "powercut-xfs",
        what: "images after power cuts on XFS, as on the machine's own ext4",
        seconds: 900,
        program: Some(POWERCUT),
        before: "modprobe -a loop xfs",
        env: "BERTH_POWERCUT_FS=xfs BERTH_POWERCUT_CUTS=20",
        ..PLAIN
    },
    Suite {
        name: "lifecycle",
        what: "the CRI on cgroup v2",
        seconds: 1800,
        program: Some(tests("lifecycle")),
        args: "--test-threads 2",
        ..PLAIN
    },
    Suite {
        name: "restart",
        what: "a new daemon finds its pods on cgroup v2",
        seconds: 1800,
        program: Some(tests("restart")),
        args: "--test-threads 2",
        ..PLAIN
    },
];

impl Suite {
    /// What the machine's shell runs; `set` are variables of the caller.
    pub(crate) fn script(&self, set: &[String]) -> String {
        let program = self
            .program
            .map(|program| format!("exec /berth/tests/{} {}\n", program.file_name(), self.args));
        format!(
            "set -e\n\
             export BERTH_DIST=/berth/dist BERTH_DIST_FAILPOINTS=/berth/dist-failpoints {}\n\
             {}\n\
             {}\n\
             {}",
            self.env,
            self.before,
            set.iter().map(|set| format!("export '{set}'")).collect::<Vec<_>>().join("\n"),
            program.unwrap_or_default(),
        )
    }
}

/// The suites that `names` name; without any, those of CI or all.
pub(crate) fn choose(names: &[String], all: bool, systemd: bool) -> Result<Vec<&'static Suite>> {
    for name in names {
        if !SUITES.iter().any(|suite| suite.name == name) {
            let known: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
            bail!("no suite {name}; there are: {}", known.join(" "));
        }
    }
    let chosen = |suite: &&Suite| {
        if names.is_empty() {
            (suite.ci || all) && suite.systemd == systemd
        } else {
            names.iter().any(|name| name == suite.name)
        }
    };
    let chosen: Vec<&Suite> = SUITES.iter().filter(chosen).collect();
    if chosen.is_empty() {
        bail!("no suite is for a machine with systemd yet: name one");
    }
    Ok(chosen)
}

/// A line for each.
pub(crate) fn print(suites: &[&Suite]) {
    for suite in suites {
        let ci = if suite.ci { "CI" } else { "" };
        println!("{:<20} {ci:<3} {}", suite.name, suite.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], all: bool) -> Vec<&'static str> {
        let asked: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        choose(&asked, all, false).unwrap().iter().map(|suite| suite.name).collect()
    }

    #[test]
    fn ci_runs_a_part_of_all() {
        let (ci, all) = (names(&[], false), names(&[], true));
        assert!(!ci.is_empty() && ci.len() < all.len(), "{ci:?} {all:?}");
        assert!(ci.iter().all(|name| all.contains(name)));
        assert_eq!(names(&["restart"], false), ["restart"]);
    }

    #[test]
    fn the_ci_subset_ends_in_ten_minutes() {
        let limit: u64 = SUITES.iter().filter(|suite| suite.ci).map(|suite| suite.seconds).sum();
        assert!(limit <= 600, "{limit} s");
    }

    #[test]
    fn an_unknown_suite_is_named_with_those_that_there_are() {
        let Err(error) = choose(&["nothing".into()], false, false) else { panic!("chosen") };
        assert!(error.to_string().starts_with("no suite nothing; there are: kernel "), "{error}");
    }

    #[test]
    fn names_are_their_own() {
        let mut names: Vec<&str> = SUITES.iter().map(|suite| suite.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SUITES.len());
        assert!(SUITES.iter().all(|suite| !suite.what.is_empty()));
    }
}
