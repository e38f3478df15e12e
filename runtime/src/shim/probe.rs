//! What the shim's engine finds that this machine can't do.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How long a look may take; a file system that hangs is one that can't.
const LIMIT: Duration = Duration::from_secs(5);

/// Why pods can't have user namespaces on layers in this directory; None: they can. The shim
/// tries it: it takes a process of one thread.
pub async fn lacks_user_namespaces(shim: &Path, layers: &Path) -> Option<String> {
    let mut command = Command::new(shim);
    command
        .args(["-id", "probe", "-bundle"])
        .arg(layers)
        .arg("probe")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let why = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => return None,
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Ok(Err(error)) => format!("start {}: {error}", shim.display()),
        Err(_) => format!("no answer from {} within {LIMIT:?}", shim.display()),
    };
    tracing::warn!(why, "pods can't have user namespaces");
    Some(why)
}
