//! Device rules: which device files a container may open and make. v1 takes them as text; for v2
//! they become a program that the kernel asks
//! (<https://docs.kernel.org/admin-guide/cgroup-v2.html#device-controller>).
//!
//! Both judge alike: each kind of access (read, write, make) on its own, by the last rule that
//! speaks of it; by none, it is allowed.

use std::fmt;

use berth_sys::bpf::Instruction;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    allow: bool,
    /// Block or character devices; both, if `None`.
    kind: Option<Kind>,
    /// All, if `None`.
    major: Option<i32>,
    minor: Option<i32>,
    /// Of [`MAKE`], [`READ`], [`WRITE`].
    access: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

// As in the kernel's `BPF_DEVCG_ACC_*`.
const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MAKE | READ | WRITE;

/// What every container may use whatever its rules say, as runc and crun have it: making device
/// files (not opening them), and the harmless devices of /dev.
pub(super) const ALWAYS: [Rule; 10] = [
    Rule { kind: Some(Kind::Character), access: MAKE, ..Rule::ANY },
    Rule { kind: Some(Kind::Block), access: MAKE, ..Rule::ANY },
    Rule::character(1, 3),
    Rule::character(1, 5),
    Rule::character(1, 7),
    Rule::character(1, 8),
    Rule::character(1, 9),
    Rule::character(5, 0),
    Rule::character(5, 2),
    Rule { minor: None, ..Rule::character(136, 0) },
];

impl Rule {
    const ANY: Self = Self { allow: true, kind: None, major: None, minor: None, access: ALL };

    const fn character(major: i32, minor: i32) -> Self {
        let (major, minor) = (Some(major), Some(minor));
        Self { kind: Some(Kind::Character), major, minor, ..Self::ANY }
    }

    /// The spec's rules, in order.
    pub(super) fn all(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Self>> {
        rules.iter().enumerate().map(|(at, rule)| Self::parse(at, rule)).collect()
    }

    fn parse(at: usize, rule: &LinuxDeviceCgroup) -> Result<Self> {
        let field = |name: &str| format!("linux.resources.devices[{at}].{name}");
        let number = |name: &str, value: Option<i64>| match value.filter(|value| *value >= 0) {
            None => Ok(None),
            Some(value) => i32::try_from(value).map(Some).map_err(|_| Error::InvalidSpec {
                field: field(name),
                reason: format!("{value} is no device number"),
            }),
        };
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(Kind::Block),
            Some(_) => Some(Kind::Character),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or_default().chars() {
            access |= match letter {
                'm' => MAKE,
                'r' => READ,
                'w' => WRITE,
                other => {
                    let reason = format!("{other:?} is none of r, w, m");
                    return Err(Error::InvalidSpec { field: field("access"), reason });
                }
            };
        }
        let access = if access == 0 { ALL } else { access };
        let (major, minor) = (number("major", rule.major())?, number("minor", rule.minor())?);
        Ok(Self { allow: rule.allow(), kind, major, minor, access })
    }

    pub(super) fn allows(self) -> bool {
        self.allow
    }

    /// Whether no earlier rule matters.
    fn settles_all(self) -> bool {
        self == Self { allow: self.allow, ..Self::ANY }
    }
}

/// v1's text, without the word that allows or denies.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => "a",
            Some(Kind::Block) => "b",
            Some(Kind::Character) => "c",
        };
        let number = |n: Option<i32>| n.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let letters = [(READ, "r"), (WRITE, "w"), (MAKE, "m")];
        let asked = letters.iter().filter(|(bit, _)| self.access & bit != 0);
        asked.map(|(_, letter)| letter).try_for_each(|letter| f.write_str(letter))
    }
}

// Registers: the answer; the question; what of the access is not judged yet; the device.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const OPEN: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Operations: 64-bit arithmetic and jumps with a constant, but for the first two.
const LOAD_WORD: u8 = 0x61;
const COPY: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// The program for rules in order; `None` where they allow everything.
pub(super) fn program(rules: &[Rule]) -> Option<Vec<Instruction>> {
    // The last rule is asked first.
    let end = rules.iter().rposition(|rule| rule.settles_all());
    let rules = rules.get(end.unwrap_or_default()..).unwrap_or_default();
    if rules.iter().all(|rule| rule.allow) {
        return None;
    }
    let mut program = vec![
        // The access in the upper 16 bits, the kind in the lower ones.
        load(OPEN, 0),
        copy(KIND, OPEN),
        of(SHIFT_RIGHT, OPEN, 16),
        of(AND, KIND, 0xffff),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    program.extend(rules.iter().rev().flat_map(|rule| judge(*rule)));
    program.extend(answer(1));
    Some(program)
}

/// Ends the program if the rule decides; else goes on behind it.
fn judge(rule: Rule) -> Vec<Instruction> {
    let verdict = if rule.allow {
        // Allowed is what no later rule denied, once nothing is open.
        let rest = [of(AND, OPEN, !rule.access), jump(JUMP_UNLESS_EQUAL, OPEN, 0, 2)];
        [&rest[..], &answer(1)].concat()
    } else {
        let hit = [
            copy(SCRATCH, OPEN),
            of(AND, SCRATCH, rule.access),
            jump(JUMP_IF_EQUAL, SCRATCH, 0, 2),
        ];
        [&hit[..], &answer(0)].concat()
    };
    let conditions =
        [(KIND, rule.kind.map(|kind| kind as i32)), (MAJOR, rule.major), (MINOR, rule.minor)];
    let mut code = verdict;
    for (register, wanted) in conditions {
        let Some(wanted) = wanted else { continue };
        // A rule is at most eight instructions.
        let behind = i16::try_from(code.len()).unwrap_or(i16::MAX);
        code.insert(0, jump(JUMP_UNLESS_EQUAL, register, wanted, behind));
    }
    code
}

fn answer(answer: i32) -> [Instruction; 2] {
    [of(SET, ANSWER, answer), of(EXIT, 0, 0)]
}

fn of(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate }
}

fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

fn copy(to: u8, from: u8) -> Instruction {
    of(COPY, to | from << 4, 0)
}

fn load(to: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD_WORD, registers: to | QUESTION << 4, offset, immediate: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: serde_json::Value) -> Vec<Rule> {
        Rule::all(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(json).unwrap()).unwrap()
    }

    /// A question: kind, major, minor, access.
    type Question = (Kind, i32, i32, i32);

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], (kind, major, minor, access): Question) -> bool {
        let question = [access << 16 | kind as i32, major, minor].map(i64::from);
        let mut registers = [0_i64; 11];
        let mut at = 0;
        loop {
            let one = program[at];
            let (to, from) = (usize::from(one.registers & 15), usize::from(one.registers >> 4));
            let constant = i64::from(one.immediate);
            let mut next = at + 1;
            match one.code {
                LOAD_WORD => registers[to] = question[usize::try_from(one.offset).unwrap() / 4],
                COPY => registers[to] = registers[from],
                SET => registers[to] = constant,
                AND => registers[to] &= constant,
                SHIFT_RIGHT => registers[to] >>= constant,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {
                    if (registers[to] == constant) == (one.code == JUMP_IF_EQUAL) {
                        next += usize::try_from(one.offset).unwrap();
                    }
                }
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other:#x}"),
            }
            at = next;
        }
    }

    /// What the rules mean, said plainly.
    fn wanted(rules: &[Rule], (kind, major, minor, access): Question) -> bool {
        [MAKE, READ, WRITE].iter().filter(|bit| access & **bit != 0).all(|bit| {
            let speaks = |rule: &&Rule| {
                rule.kind.is_none_or(|wanted| wanted == kind)
                    && rule.major.is_none_or(|wanted| wanted == major)
                    && rule.minor.is_none_or(|wanted| wanted == minor)
                    && rule.access & bit != 0
            };
            rules.iter().rev().find(speaks).is_none_or(|rule| rule.allow)
        })
    }

    fn questions() -> Vec<Question> {
        let mut all = Vec::new();
        for kind in [Kind::Block, Kind::Character] {
            for major in [1, 8, 10, 136] {
                for minor in [0, 3, 229] {
                    all.extend((1..=ALL).map(|access| (kind, major, minor, access)));
                }
            }
        }
        all
    }

    fn check(rules: &[Rule]) {
        let program = program(rules);
        for question in questions() {
            let allowed = program.as_ref().is_none_or(|program| run(program, question));
            assert_eq!(allowed, wanted(rules, question), "{question:?} by {rules:?}");
        }
    }

    #[test]
    fn programs_judge_as_the_rules_mean() {
        for json in [
            serde_json::json!([]),
            serde_json::json!([{"allow": false, "access": "rwm"}]),
            serde_json::json!([{"allow": true, "access": "rwm"}]),
            serde_json::json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "access": "w"},
                {"allow": false, "type": "b", "major": 8, "access": "w"},
            ]),
            serde_json::json!([
                {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "minor": 0, "access": "w"},
            ]),
        ] {
            let mut rules = rules(json);
            check(&rules);
            rules.extend(ALWAYS);
            check(&rules);
        }
    }

    #[test]
    fn generated_rules_are_judged_as_they_mean() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut pick = |count: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % 1024).unwrap() % count
        };
        for _ in 0..500 {
            let rules: Vec<Rule> = (0..pick(8))
                .map(|_| Rule {
                    allow: pick(2) == 1,
                    kind: [None, Some(Kind::Block), Some(Kind::Character)][pick(3)],
                    major: [None, Some(1), Some(8), Some(10)][pick(4)],
                    minor: [None, Some(0), Some(3)][pick(3)],
                    access: [1, 2, 3, 4, 5, 6, 7, 7][pick(8)],
                })
                .collect();
            check(&rules);
        }
    }

    #[test]
    fn rules_that_allow_everything_need_no_program() {
        assert_eq!(program(&[]), None);
        assert_eq!(program(&rules(serde_json::json!([{"allow": true}]))), None);
        let denied = serde_json::json!([{"allow": false}, {"allow": true}]);
        assert_eq!(program(&rules(denied)), None, "the last rule settles all");
    }

    #[test]
    fn the_kernel_takes_the_program() {
        let mut rules = rules(serde_json::json!([{"allow": false}]));
        rules.extend(ALWAYS);
        berth_sys::bpf::load_device_program(&program(&rules).unwrap()).unwrap();
    }

    #[test]
    fn bad_rules_are_named() {
        for (json, field) in [
            (serde_json::json!([{"allow": true, "access": "rx"}]), "devices[0].access: 'x'"),
            (serde_json::json!([{"allow": true, "major": 4_294_967_296_i64}]), "devices[0].major"),
        ] {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
            let err = Rule::all(&rules).unwrap_err().to_string();
            assert!(err.starts_with(&format!("linux.resources.{field}")), "{err}");
        }
    }
}
