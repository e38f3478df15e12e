//! ContainerConfig -> ContainerSpec.

use std::path::PathBuf;

use berth_proto::cri;

use super::{field, mounts, namespaces, resources, security, signal};
use crate::pod::Result;
use crate::pod::spec::{Capabilities, ContainerKey, ContainerSpec};

/// The container that a CreateContainer asks for. `sandbox_config` is not looked at: the pod's
/// own record is what counts.
pub(in crate::cri) fn container(request: &cri::CreateContainerRequest) -> Result<ContainerSpec> {
    let config = field::required("config", request.config.as_ref())?;
    if config.windows.is_some() {
        return field::refuse("config.windows", "(set)", "this is a Linux runtime");
    }
    let image = field::required("config.image", config.image.as_ref())?;
    let linux = config.linux.as_ref();
    let context = linux.and_then(|linux| linux.security_context.as_ref());
    let limits = linux.and_then(|linux| linux.resources.as_ref());
    Ok(ContainerSpec {
        key: key(config.metadata.as_ref())?,
        image: field::word("config.image.image", &image.image)?,
        user_specified_image: image.user_specified_image.clone(),
        image_annotations: field::map("config.image.annotations", &image.annotations)?,
        command: field::all_no_nul("config.command", &config.command)?,
        args: field::all_no_nul("config.args", &config.args)?,
        working_dir: working_dir(&config.working_dir)?,
        envs: envs(&config.envs)?,
        mounts: mounts::mounts(&config.mounts)?,
        devices: mounts::devices(&config.devices)?,
        cdi_devices: cdi_devices(&config.cdi_devices)?,
        labels: field::map("config.labels", &config.labels)?,
        annotations: field::map("config.annotations", &config.annotations)?,
        log_path: log_path(&config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        stop_signal: signal::parse("config.stop_signal", config.stop_signal)?,
        resources: limits
            .map(|limits| resources::parse("config.linux.resources", limits))
            .transpose()?
            .unwrap_or_default(),
        privileged: context.is_some_and(|c| c.privileged),
        no_new_privs: context.is_some_and(|c| c.no_new_privs),
        capabilities: capabilities(context.and_then(|c| c.capabilities.as_ref()))?,
        namespaces: namespaces::of_container(context.and_then(|c| c.namespace_options.as_ref()))?,
        masked_paths: paths("masked_paths", context.map(|c| c.masked_paths.as_slice()))?,
        readonly_paths: paths("readonly_paths", context.map(|c| c.readonly_paths.as_slice()))?,
        security: security::of_container(context)?,
    })
}

fn key(metadata: Option<&cri::ContainerMetadata>) -> Result<ContainerKey> {
    let metadata = field::required("config.metadata", metadata)?;
    Ok(ContainerKey {
        name: field::name("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
    })
}

fn working_dir(value: &str) -> Result<Option<String>> {
    if value.is_empty() {
        return Ok(None);
    }
    field::absolute("config.working_dir", value).map(Some)
}

/// Values may be secrets: no message repeats one.
fn envs(envs: &[cri::KeyValue]) -> Result<Vec<(String, String)>> {
    let one = |(n, env): (usize, &cri::KeyValue)| {
        let field = format!("config.envs[{n}].key");
        if env.key.is_empty() {
            return field::refuse(field, "", "is empty");
        }
        if env.key.contains(['=', '\0']) {
            return field::refuse(field, &env.key, "has a '=' or a NUL byte");
        }
        let field = format!("config.envs[{n}].value");
        match std::str::from_utf8(&env.value) {
            Ok(value) if !value.contains('\0') => Ok((env.key.clone(), value.to_owned())),
            Ok(_) => field::refuse(field, format!("(of {})", env.key), "has a NUL byte"),
            Err(_) => field::refuse(field, format!("(of {})", env.key), "is not UTF-8"),
        }
    };
    envs.iter().enumerate().map(one).collect()
}

fn cdi_devices(devices: &[cri::CdiDevice]) -> Result<Vec<String>> {
    let path = |n: usize| format!("config.CDI_devices[{n}].name");
    devices.iter().enumerate().map(|(n, device)| field::word(&path(n), &device.name)).collect()
}

fn log_path(value: &str) -> Result<Option<PathBuf>> {
    if value.is_empty() {
        return Ok(None);
    }
    field::clean_relative("config.log_path", value).map(Some)
}

fn capabilities(capabilities: Option<&cri::Capability>) -> Result<Capabilities> {
    let Some(capabilities) = capabilities else { return Ok(Capabilities::default()) };
    let list = |name: &str, values: &[String]| {
        let path = |n: usize| format!("config.linux.security_context.capabilities.{name}[{n}]");
        values.iter().enumerate().map(|(n, v)| capability(&path(n), v)).collect::<Result<_>>()
    };
    Ok(Capabilities {
        add: list("add_capabilities", &capabilities.add_capabilities)?,
        drop: list("drop_capabilities", &capabilities.drop_capabilities)?,
        add_ambient: list("add_ambient_capabilities", &capabilities.add_ambient_capabilities)?,
    })
}

/// `NET_ADMIN`, `CAP_NET_ADMIN` and `net_admin` are one name. Whether it exists is judged later.
fn capability(field: &str, value: &str) -> Result<String> {
    let upper = value.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_uppercase() || c == '_') {
        return field::refuse(field, value, "is not the name of a capability");
    }
    Ok(name.to_owned())
}

/// No security context at all means the usual list.
fn paths(name: &str, values: Option<&[String]>) -> Result<Option<Vec<String>>> {
    let Some(values) = values else { return Ok(None) };
    let path = |n: usize| format!("config.linux.security_context.{name}[{n}]");
    let paths = values.iter().enumerate().map(|(n, v)| field::clean_absolute(&path(n), v));
    paths.collect::<Result<_>>().map(Some)
}
