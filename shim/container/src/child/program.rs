//! The last steps: who the process is, the gate, and the program itself.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use berth_sys::creds::{self, Capabilities, Rlimit};
use berth_sys::process;
use berth_sys::root::{Leaf, Root};
use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};

use super::{Given, ensure, open_dir};
use crate::plan::Plan;
use crate::plan::process::{ProcessPlan, RlimitPlan};
use crate::wire::{ChildEnd, Doing, Failure, Work};

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A passwd file beyond this is not read on.
const PASSWD_LIMIT: u64 = 1 << 20;

/// Makes the working directory where absent, as root.
pub(super) fn make_cwd(root: &Root, cwd: &Path) -> Work<()> {
    ensure(root, cwd, Leaf::Dir).map(drop)
}

/// Becomes the user, waits at the gate, executes.
pub(super) fn start(plan: &Plan<'_>, given: &Given<'_>) -> Work<Infallible> {
    let env = become_process(&plan.process, &given.end)?;
    let_go(&given.end);
    given.end.ready()?;
    given.end.wait_go()?;
    execute(&plan.process, &env, &given.end)
}

/// Closes all that was the maker's or the host's, before other processes of the container can see
/// this one wait. Nothing later uses another descriptor.
pub(crate) fn let_go(end: &ChildEnd) {
    use rustix::stdio::{stderr, stdin, stdout};
    process::keep_only(&[stdin(), stdout(), stderr(), end.as_fd()]);
}

/// Raises the hard limits as far as they will be set: in a user namespace nobody may.
pub(super) fn raise_limits(plan: &ProcessPlan) -> Work<()> {
    for limit in &plan.rlimits {
        let step = || format!("raise {}", limit.name);
        let have = creds::rlimit(limit.resource).doing(step)?;
        if limit.hard > have.hard {
            // What the host doesn't allow is told when the limit is set.
            let _ = creds::set_rlimit(limit.resource, Rlimit { hard: limit.hard, ..have });
        }
    }
    Ok(())
}

/// Everything of `process` but its program. The environment for it.
pub(crate) fn become_process(plan: &ProcessPlan, end: &ChildEnd) -> Work<Vec<CString>> {
    let env = environment(plan)?;
    enter_cwd(&plan.cwd)?;
    for limit in &plan.rlimits {
        set_rlimit(limit, end)?;
    }
    let capabilities = allowed(&plan.capabilities, end)?;
    creds::drop_bounding(capabilities.bounding).doing(|| "drop capabilities".to_owned())?;
    creds::become_user(plan.uid, plan.gid, &plan.groups)
        .doing(|| format!("become user {}:{}", plan.uid, plan.gid))?;
    creds::set_capabilities(&capabilities).doing(|| "set capabilities".to_owned())?;
    if plan.no_new_privs {
        creds::set_no_new_privs().doing(|| "set no_new_privs".to_owned())?;
    }
    rustix::process::umask(Mode::from_raw_mode(plan.umask));
    process::reset_signals().doing(|| "reset signals".to_owned())?;
    Ok(env)
}

/// By a walk that can't leave the root, so that no link leads out of it.
fn enter_cwd(cwd: &Path) -> Work<()> {
    let step = || format!("enter working directory {}", cwd.display());
    let root = Root::new(open_dir("/")?);
    let dir = root.open(cwd, OFlags::PATH | OFlags::DIRECTORY).doing(step)?;
    rustix::process::fchdir(&dir).doing(step)
}

/// Without HOME: the home directory of the user's entry in the container's passwd file, or `/`.
fn environment(plan: &ProcessPlan) -> Work<Vec<CString>> {
    let mut env = plan.env.clone();
    if !plan.has_home {
        let home = home_of(plan.uid).unwrap_or_else(|| "/".to_owned());
        let entry = CString::new(format!("HOME={home}")).map_err(io::Error::from);
        env.push(entry.doing(|| "set HOME".to_owned())?);
    }
    Ok(env)
}

fn home_of(uid: u32) -> Option<String> {
    let root = Root::new(open_dir("/").ok()?);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: OwnedFd = root.open(Path::new("/etc/passwd"), flags).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(PASSWD_LIMIT).read_to_end(&mut bytes).ok()?;
    home_in(&String::from_utf8_lossy(&bytes), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd
        .lines()
        .find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let matches = fields.get(2)?.parse::<u32>() == Ok(uid);
            matches.then(|| fields.get(5).copied()).flatten().filter(|home| !home.is_empty())
        })
        .map(str::to_owned)
}

/// Where the hard limit can't be raised that far: the nearest the host allows.
fn set_rlimit(limit: &RlimitPlan, end: &ChildEnd) -> Work<()> {
    let step = || format!("set {}", limit.name);
    let wanted = Rlimit { soft: limit.soft, hard: limit.hard };
    match creds::set_rlimit(limit.resource, wanted) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            let have = creds::rlimit(limit.resource).doing(step)?;
            let hard = limit.hard.min(have.hard);
            let nearest = Rlimit { soft: limit.soft.min(hard), hard };
            creds::set_rlimit(limit.resource, nearest).doing(step)?;
            end.warn(&format!(
                "{}={}:{} is above what this host allows; set to {}:{}",
                limit.name, limit.soft, limit.hard, nearest.soft, nearest.hard
            ))
        }
        other => other.doing(step),
    }
}

/// Lowering needs CAP_SYS_RESOURCE: without it the present value, the nearest allowed, stays.
pub(super) fn set_oom_score(wanted: i32, end: &ChildEnd) -> Work<()> {
    let file = "/proc/self/oom_score_adj";
    let step = || format!("write {wanted} to {file}");
    match std::fs::write(file, wanted.to_string()) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
            let have = std::fs::read_to_string(file).doing(step)?;
            end.warn(&format!(
                "oom_score_adj={wanted} is below what this host allows; it stays {}",
                have.trim()
            ))
        }
        other => other.doing(step),
    }
}

/// What the host itself lacks is left out.
fn allowed(wanted: &Capabilities, end: &ChildEnd) -> Work<Capabilities> {
    let have = creds::capabilities().doing(|| "read capabilities".to_owned())?;
    let permitted = wanted.permitted & have.permitted;
    let inheritable = wanted.inheritable & (have.permitted | have.inheritable);
    let given = Capabilities {
        bounding: wanted.bounding & have.bounding,
        permitted,
        effective: wanted.effective & permitted,
        inheritable,
        ambient: wanted.ambient & permitted & inheritable,
    };
    let lacking = (wanted.bounding & !have.bounding) | (wanted.permitted & !have.permitted);
    if lacking != 0 {
        let names = creds::CAPABILITY_NAMES.iter().enumerate();
        let names: Vec<&str> =
            names.filter(|(cap, _)| lacking & (1 << cap) != 0).map(|(_, name)| *name).collect();
        end.warn(&format!(
            "capabilities left out, which this host doesn't have: {}",
            names.join(", ")
        ))?;
    }
    Ok(given)
}

/// Finds the program as its user would, and becomes it.
pub(crate) fn execute(plan: &ProcessPlan, env: &[CString], end: &ChildEnd) -> Work<Infallible> {
    let name = plan.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
    let program = find(&name, plan.path.as_deref())?;
    let program = CString::new(program.as_os_str().as_bytes()).map_err(io::Error::from);
    let program = program.doing(|| format!("exec {name}"))?;
    process::cloexec_all();
    end.executing()?;
    let err = process::execve(&program, &plan.args, env);
    let errno = err.raw_os_error().unwrap_or(0);
    let message = format!("exec {}: {}", program.to_string_lossy(), crate::error::words(&err));
    Err(Failure::Exec { message, errno })
}

/// In the words of Go's os/exec, which runc's users know.
fn find(name: &str, path: Option<&str>) -> Work<PathBuf> {
    if name.contains('/') {
        return check(Path::new(name)).map(|()| name.into()).map_err(|err| {
            let errno = err.raw_os_error().unwrap_or(0);
            let said = crate::error::words(&err);
            let stat = if err.kind() == io::ErrorKind::NotFound {
                format!("stat {name}: ")
            } else {
                String::new()
            };
            Failure::Exec { message: format!("exec: {name:?}: {stat}{said}"), errno }
        });
    }
    let mut denied = None;
    for dir in path.unwrap_or(DEFAULT_PATH).split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let program = Path::new(dir).join(name);
        match check(&program) {
            Ok(()) => return Ok(program),
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => denied = Some(err),
            Err(_) => {}
        }
    }
    let errno = denied.and_then(|err| err.raw_os_error()).unwrap_or(2);
    let why = if errno == 2 { "executable file not found in $PATH" } else { "permission denied" };
    Err(Failure::Exec { message: format!("exec: {name:?}: {why}"), errno })
}

/// A regular file that this user may execute.
fn check(program: &Path) -> io::Result<()> {
    let stat = rustix::fs::stat(program)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(rustix::io::Errno::ISDIR.into());
    }
    Ok(rustix::fs::accessat(CWD, program, Access::EXEC_OK, AtFlags::EACCESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_sixth_field_of_the_first_entry() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nme:x:7:7::/home/me:\nme2:x:7:7::/b:\nno:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7).as_deref(), Some("/home/me"));
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }

    #[test]
    fn missing_programs_are_told_in_runcs_words() {
        let message = |name: &str, path: Option<&str>| match find(name, path) {
            Err(Failure::Exec { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            message("/no/x", None),
            "exec: \"/no/x\": stat /no/x: no such file or directory"
        );
        assert_eq!(
            message("nox", Some("/bin")),
            "exec: \"nox\": executable file not found in $PATH"
        );
        assert_eq!(message("/etc", None), "exec: \"/etc\": is a directory");
        assert_eq!(message("/etc/passwd", None), "exec: \"/etc/passwd\": permission denied");
        assert_eq!(message("passwd", Some("/etc")), "exec: \"passwd\": permission denied");
        assert_eq!(find("sh", Some("/nowhere:/bin")).unwrap(), Path::new("/bin/sh"));
    }
}
