//! Exec, Attach, PortForward: a URL by which the streaming server is asked.

use berth_proto::cri;

use super::code::Failure;
use super::{Front, parse};
use crate::pod::{self, ContainerState, Error};
use crate::stream::{Command, Forward, Wanted};

/// Where a command of a running container can be had.
pub(super) fn exec(
    front: &Front,
    request: &cri::ExecRequest,
) -> Result<cri::ExecResponse, Failure> {
    let argv = parse::argv("cmd", &request.cmd)?;
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    let container = running(front, &request.container_id)?;
    let url = front.streams.command(Command { container, argv: Some(argv), wanted })?;
    Ok(cri::ExecResponse { url })
}

/// Where the first process of a running container can be had.
pub(super) fn attach(
    front: &Front,
    request: &cri::AttachRequest,
) -> Result<cri::AttachResponse, Failure> {
    let wanted = wanted(request.stdin, request.stdout, request.stderr, request.tty)?;
    let container = running(front, &request.container_id)?;
    let url = front.streams.command(Command { container, argv: None, wanted })?;
    Ok(cri::AttachResponse { url })
}

/// Where connections into a ready pod can be had.
pub(super) fn port_forward(
    front: &Front,
    request: &cri::PortForwardRequest,
) -> Result<cri::PortForwardResponse, Failure> {
    let id = parse::id("pod_sandbox_id", &request.pod_sandbox_id)?;
    let ports = ports(&request.port)?;
    let pod = front.roster.pod_status(id)?;
    if !pod.ready {
        let (what, why) = (format!("pod sandbox {id}"), "nothing can connect to it".to_owned());
        return Err(Error::State { what, state: "not ready", why }.into());
    }
    let (netns, pod) = (pod.netns.clone(), pod.id.to_string());
    let url = front.streams.forward(Forward { pod, netns, ports })?;
    Ok(cri::PortForwardResponse { url })
}

/// What both containerd and CRI-O refuse is refused.
fn wanted(stdin: bool, stdout: bool, stderr: bool, tty: bool) -> pod::Result<Wanted> {
    if tty && stderr {
        return Err(Error::invalid("stderr", "true", "a terminal has one output: stdout"));
    }
    if !stdin && !stdout && !stderr {
        let why = "one of stdin, stdout and stderr must be set";
        return Err(Error::invalid("stdin, stdout, stderr", "false", why));
    }
    Ok(Wanted { stdin, stdout, stderr, tty })
}

/// The full id of a container that runs.
fn running(front: &Front, id: &str) -> pod::Result<String> {
    let container = front.roster.container_status(parse::id("container_id", id)?)?;
    let state = match container.state {
        ContainerState::Running => return Ok(container.id.to_string()),
        ContainerState::Created => "created",
        ContainerState::Exited => "exited",
    };
    let (what, why) = (format!("container {id}"), "it has no streams".to_owned());
    Err(Error::State { what, state, why })
}

fn ports(ports: &[i32]) -> pod::Result<Vec<u16>> {
    let port = |value: &i32| {
        u16::try_from(*value)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| Error::invalid("port", value.to_string(), "is not from 1 to 65535"))
    };
    ports.iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (stdin, stdout, stderr, tty, good) in [
            (false, false, false, false, false),
            (false, false, false, true, false),
            (true, true, true, true, false),
            (false, true, true, true, false),
            (true, false, false, false, true),
            (false, false, true, false, true),
            (true, true, false, true, true),
            (true, true, true, false, true),
        ] {
            let result = wanted(stdin, stdout, stderr, tty);
            assert_eq!(result.is_ok(), good, "{stdin} {stdout} {stderr} {tty}");
        }
        assert_eq!(ports(&[1, 80, 65535]).unwrap(), [1, 80, 65535]);
        for bad in [0, -1, 65536] {
            assert!(ports(&[bad]).unwrap_err().to_string().contains(&bad.to_string()));
        }
    }
}
