//! The first process: what it runs, as whom, with what around it.

use oci_spec::runtime::{Process, User as OciUser};

use super::{Input, capabilities, refuse};
use crate::pod::{Result, User};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn build(input: &Input<'_>, user: &User) -> Result<Process> {
    let asked = input.container;
    let mut who = OciUser::default();
    who.set_uid(user.uid);
    who.set_gid(user.gid);
    who.set_additional_gids(Some(user.groups.clone()));

    // In a user namespace of its own a pod can be given all there are, whatever the host has.
    let all = match input.pod.namespaces.user {
        true => capabilities::NAMES,
        false => &input.host.capabilities,
    };
    let held = capabilities::build(&asked.capabilities, asked.privileged, all)?;
    let mut process = Process::default();
    process.set_terminal(Some(asked.tty));
    process.set_user(who);
    process.set_args(Some(args(input)?));
    process.set_env(Some(env(input, user)));
    process.set_cwd(working_dir(input).into());
    process.set_capabilities(Some(held));
    process.set_rlimits(None);
    process.set_no_new_privileges(Some(asked.no_new_privs));
    process.set_oom_score_adj(Some(asked.resources.oom_score_adj));
    Ok(process)
}

/// The request's command replaces the image's entrypoint and command; its arguments replace the
/// image's command.
fn args(input: &Input<'_>) -> Result<Vec<String>> {
    let (asked, image) = (input.container, input.image);
    let all = match (asked.command.is_empty(), asked.args.is_empty()) {
        (true, true) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
        (true, false) => [image.entrypoint.clone(), asked.args.clone()].concat(),
        (false, _) => [asked.command.clone(), asked.args.clone()].concat(),
    };
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(refuse("command", "", "neither the request nor the image names a program")),
    }
}

/// Ours, then the image's, then the request's; a later one replaces an earlier one in its place.
fn env(input: &Input<'_>, user: &User) -> Vec<String> {
    let home = input.names.home(user.uid).unwrap_or_else(|| "/".to_owned());
    let mut all: Vec<(String, String)> = vec![
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOSTNAME".to_owned(), input.hostname.clone()),
        ("HOME".to_owned(), home),
    ];
    if input.container.tty {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let image = input.image.env.iter().map(|pair| match pair.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (pair.clone(), String::new()),
    });
    for (name, value) in image.chain(input.container.envs.iter().cloned()) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(old) => old.1 = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn working_dir(input: &Input<'_>) -> String {
    let asked = input.container.working_dir.as_deref().filter(|dir| !dir.is_empty());
    let dir = asked.unwrap_or(&input.image.working_dir);
    match dir.starts_with('/') {
        true => dir.to_owned(),
        false => format!("/{dir}"),
    }
}
