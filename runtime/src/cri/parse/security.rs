//! Security contexts -> Security. The deprecated string fields count where the new ones are unset.

use berth_proto::cri;

use super::field;
use crate::pod::Result;
use crate::pod::spec::{Profile, RunAs, Security, SelinuxLabel};

const PATH: &str = "config.linux.security_context";

pub(super) fn of_pod(context: Option<&cri::LinuxSandboxSecurityContext>) -> Result<Security> {
    let Some(context) = context else { return Ok(Security::default()) };
    Ok(Security {
        run_as: run_as(&Identity {
            user: context.run_as_user.as_ref(),
            username: "",
            group: context.run_as_group.as_ref(),
            supplemental: &context.supplemental_groups,
            policy: context.supplemental_groups_policy,
        })?,
        readonly_rootfs: context.readonly_rootfs,
        seccomp: seccomp(context.seccomp.as_ref(), &context.seccomp_profile_path)?,
        apparmor: profile("apparmor", context.apparmor.as_ref())?,
        selinux: selinux(context.selinux_options.as_ref())?,
    })
}

pub(super) fn of_container(
    context: Option<&cri::LinuxContainerSecurityContext>,
) -> Result<Security> {
    let Some(context) = context else { return Ok(Security::default()) };
    Ok(Security {
        run_as: run_as(&Identity {
            user: context.run_as_user.as_ref(),
            username: &context.run_as_username,
            group: context.run_as_group.as_ref(),
            supplemental: &context.supplemental_groups,
            policy: context.supplemental_groups_policy,
        })?,
        readonly_rootfs: context.readonly_rootfs,
        seccomp: seccomp(context.seccomp.as_ref(), &context.seccomp_profile_path)?,
        apparmor: apparmor(context.apparmor.as_ref(), &context.apparmor_profile)?,
        selinux: selinux(context.selinux_options.as_ref())?,
    })
}

/// What both security contexts say on users and groups.
struct Identity<'a> {
    user: Option<&'a cri::Int64Value>,
    username: &'a str,
    group: Option<&'a cri::Int64Value>,
    supplemental: &'a [i64],
    policy: i32,
}

fn run_as(identity: &Identity) -> Result<RunAs> {
    let numeric = |name: &str, value: Option<&cri::Int64Value>| {
        value.map(|value| number(&format!("{PATH}.{name}"), value.value)).transpose()
    };
    let user = numeric("run_as_user", identity.user)?;
    let group = numeric("run_as_group", identity.group)?;
    if let (None, "", Some(group)) = (user, identity.username, group) {
        return field::refuse(format!("{PATH}.run_as_group"), group, "needs a run_as_user");
    }
    let supplemental = identity.supplemental.iter().enumerate();
    let policy: cri::SupplementalGroupsPolicy =
        field::choice(&format!("{PATH}.supplemental_groups_policy"), identity.policy)?;
    Ok(RunAs {
        user,
        username: username(identity.username)?,
        group,
        supplemental_groups: supplemental
            .map(|(n, &value)| number(&format!("{PATH}.supplemental_groups[{n}]"), value))
            .collect::<Result<_>>()?,
        strict_groups: policy == cri::SupplementalGroupsPolicy::Strict,
    })
}

fn username(value: &str) -> Result<Option<String>> {
    if value.is_empty() {
        return Ok(None);
    }
    field::word(&format!("{PATH}.run_as_username"), value).map(Some)
}

/// A user or group: all of 32 bits but the last value, which means "unchanged" to the kernel.
fn number(field: &str, value: i64) -> Result<u32> {
    match u32::try_from(value) {
        Ok(number) if number != u32::MAX => Ok(number),
        _ => field::refuse(field, value, "is not a user or group id"),
    }
}

fn profile(name: &str, profile: Option<&cri::SecurityProfile>) -> Result<Option<Profile>> {
    use cri::security_profile::ProfileType;
    let Some(profile) = profile else { return Ok(None) };
    let field = format!("{PATH}.{name}");
    Ok(Some(match field::choice(&format!("{field}.profile_type"), profile.profile_type)? {
        ProfileType::RuntimeDefault => Profile::RuntimeDefault,
        ProfileType::Unconfined => Profile::Unconfined,
        ProfileType::Localhost => {
            localhost(&format!("{field}.localhost_ref"), &profile.localhost_ref)?
        }
    }))
}

fn localhost(field: &str, value: &str) -> Result<Profile> {
    if value.is_empty() {
        return field::refuse(field, value, "is empty");
    }
    field::no_nul(field, value).map(Profile::Localhost)
}

fn seccomp(new: Option<&cri::SecurityProfile>, old: &str) -> Result<Option<Profile>> {
    if new.is_some() {
        return profile("seccomp", new);
    }
    deprecated("seccomp_profile_path", old)
}

fn apparmor(new: Option<&cri::SecurityProfile>, old: &str) -> Result<Option<Profile>> {
    if new.is_some() {
        return profile("apparmor", new);
    }
    deprecated("apparmor_profile", old)
}

/// The texts that kubelet wrote before there were messages for them.
fn deprecated(name: &str, value: &str) -> Result<Option<Profile>> {
    let field = format!("{PATH}.{name}");
    match value {
        "" => Ok(None),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        other => match other.strip_prefix("localhost/") {
            Some(rest) => localhost(&field, rest).map(Some),
            None => field::refuse(field, other, "is not the name of a profile"),
        },
    }
}

fn selinux(options: Option<&cri::SeLinuxOption>) -> Result<Option<SelinuxLabel>> {
    let Some(options) = options else { return Ok(None) };
    let part = |name: &str, value: &str| {
        if value.is_empty() {
            return Ok(String::new());
        }
        field::word(&format!("{PATH}.selinux_options.{name}"), value)
    };
    let label = SelinuxLabel {
        user: part("user", &options.user)?,
        role: part("role", &options.role)?,
        kind: part("type", &options.r#type)?,
        level: part("level", &options.level)?,
    };
    Ok((label != SelinuxLabel::default()).then_some(label))
}
