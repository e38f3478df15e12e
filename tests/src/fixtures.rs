//! The images nearly every test uses, and the registry that holds them.

use std::fs;
use std::sync::{Arc, LazyLock, Mutex, Weak};

use anyhow::{Context, Result, anyhow};
use serde_json::json;

use crate::image::{Built, Image, Layer};
use crate::node;
use crate::registry::Registry;
use crate::tar::{Entry, Kind};

/// busybox with a shell, users and groups; its command is `sh`.
pub const BUSYBOX: &str = "busybox:1";
/// The test program of `tests/app` as `/bin/berth-app`, its entrypoint.
pub const APP: &str = "app:1";
/// What a runtime with a pause container starts for a pod.
pub const PAUSE: &str = "pause:1";

const APPLETS: &str = "ash basename cat chmod chown cmp cp cut date dd df dirname echo env expr \
    false find free grep head hostname id ifconfig ip kill ln ls mkdir mkfifo mknod mount mv nc \
    nice nslookup od ping pkill printenv printf ps pwd readlink rm route sed seq setsid sh \
    sha256sum sleep sort stat stty sync tail tee test timeout touch tr true tty umount uname uniq \
    usleep vi wc wget which whoami xargs yes";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    app:x:1000:1001:an app:/home/app:/bin/sh\n\
    other:x:1002:1002::/home/other:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1001:\nother:x:1002:\n\
    extra:x:2000:app\nmore:x:2001:app,other\n";

/// The registry of this test process with the images above; ends with its last user.
pub fn registry() -> Result<Arc<Registry>> {
    static SHARED: Mutex<Weak<Registry>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().map_err(|_| anyhow!("the shared registry is poisoned"))?;
    if let Some(registry) = shared.upgrade() {
        return Ok(registry);
    }
    let registry = Arc::new(Registry::http()?);
    push_standard(&registry)?;
    *shared = Arc::downgrade(&registry);
    Ok(registry)
}

/// Puts the images above into a registry.
pub fn push_standard(registry: &Registry) -> Result<()> {
    for (name, built) in [(BUSYBOX, &*BUSYBOX_IMAGE), (APP, &*APP_IMAGE), (PAUSE, &*PAUSE_IMAGE)] {
        let (repository, tag) = name.split_once(':').context("a tagged name")?;
        match built {
            Ok(built) => registry.push(repository, tag, built)?,
            // Tests that need it fail at its pull; the others need not.
            Err(error) => eprintln!("{name} cannot be built: {error}"),
        }
    }
    Ok(())
}

/// The bottom layer of every image with a shell.
pub fn busybox_layer() -> Result<Layer> {
    static LAYER: LazyLock<Result<Layer, String>> =
        LazyLock::new(|| make_busybox_layer().map_err(|error| format!("{error:#}")));
    LAYER.clone().map_err(|error| anyhow!(error))
}

fn make_busybox_layer() -> Result<Layer> {
    let busybox = fs::read("/bin/busybox").context("/bin/busybox (package busybox-static)")?;
    let dirs = ["bin", "data", "dev", "etc", "home", "proc", "root", "sys", "usr", "var"];
    let mut entries: Vec<Entry> = dirs.into_iter().map(Entry::dir).collect();
    entries.push(Entry::dir("home/app").owner(1000, 1001));
    entries.push(Entry::dir("tmp").mode(0o1777));
    entries.push(Entry::file("etc/passwd", PASSWD));
    entries.push(Entry::file("etc/group", GROUP));
    entries.push(Entry::new("bin/busybox", Kind::File(busybox)).mode(0o755));
    for applet in APPLETS.split_whitespace() {
        let link = Kind::Symlink("busybox".to_owned());
        entries.push(Entry::new(&format!("bin/{applet}"), link).mode(0o777));
    }
    Layer::new(&entries)
}

type Cached = LazyLock<Result<Built, String>>;

static BUSYBOX_IMAGE: Cached = LazyLock::new(|| {
    let image = busybox_layer().map(|layer| Image::new(vec![layer]));
    let config = json!({"Cmd": ["sh"], "Env": ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes"]});
    image.map(|image| image.config(config).build()).map_err(|error| format!("{error:#}"))
});

static APP_IMAGE: Cached = LazyLock::new(|| app_image(&[]).map_err(|e| format!("{e:#}")));

static PAUSE_IMAGE: Cached = LazyLock::new(|| {
    let image = busybox_layer().map(|layer| Image::new(vec![layer]));
    let wait = "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait; done";
    let config = json!({"Entrypoint": ["/bin/sh", "-c", wait]});
    image.map(|image| image.config(config).build()).map_err(|error| format!("{error:#}"))
});

fn app_image(command: &[&str]) -> Result<Built> {
    let path = node::app_binary();
    let app = fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let layer = Layer::new(&[
        Entry::dir("bin"),
        Entry::dir("tmp").mode(0o1777),
        Entry::new("bin/berth-app", Kind::File(app)).mode(0o755),
    ])?;
    let config = json!({"Entrypoint": ["/bin/berth-app"], "Cmd": command});
    Ok(Image::new(vec![layer]).config(config).build())
}
