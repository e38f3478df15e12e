//! CreateContainer, as a list of steps.

use std::path::{Path, PathBuf};

use berth_proto::ids::ContainerId;

use super::cleanup::Cleanup;
use super::house::{PodEnv, blocking};
use super::spec::ContainerSpec;
use super::steps::{Cancelled, Steps};
use super::{Error, Result, User, volumes};
use crate::clock;
use crate::ports::{Image, Images};
use crate::shim::{CreateTask, Rootfs};
use crate::spec::{self, HostPaths, Names};
use crate::store::{ContainerPhase, ContainerRecord};

/// The files of an image that name users are not read beyond this.
const NAMES_LIMIT: usize = 4 << 20;

/// What became of it.
pub(crate) struct Made {
    /// Created; or None, and all is undone but the leftovers.
    pub record: Option<ContainerRecord>,
    /// Why it was undone.
    pub failure: Option<Error>,
    /// What could not be undone.
    pub left: Vec<Cleanup>,
}

/// Makes the container; undoes everything where a step fails.
pub(crate) async fn create(
    env: &PodEnv,
    mut record: ContainerRecord,
    cancelled: Cancelled,
) -> Made {
    let mut steps = Steps::new(env, cancelled);
    let Err(error) = attempt(&mut steps, env, &mut record).await else {
        return Made { record: Some(record), failure: None, left: Vec::new() };
    };
    let left = steps.undo().await;
    if let Err(error) = env.forget_container(&record.id).await {
        tracing::warn!(container = %record.id, %error, "record of an undone container stays");
    }
    Made { record: None, failure: Some(error), left }
}

/// The record of a container that is about to be made.
pub(crate) fn intent(env: &PodEnv, id: ContainerId, asked: ContainerSpec) -> ContainerRecord {
    let log_path = match (&env.spec.log_directory, &asked.log_path) {
        (Some(dir), Some(path)) => Some(dir.join(path)),
        _ => None,
    };
    ContainerRecord {
        id,
        pod: env.id.clone(),
        phase: ContainerPhase::Making,
        created_at: clock::now(),
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        image_id: String::new(),
        image_ref: String::new(),
        volume_images: Vec::new(),
        log_path,
        user: User::default(),
        stop_signal: asked.stop_signal.unwrap_or_default(),
        pid: 0,
        log_bytes_lost: 0,
        spec: asked,
    }
}

async fn attempt(steps: &mut Steps<'_>, env: &PodEnv, record: &mut ContainerRecord) -> Result<()> {
    let container = record.id.clone();
    let image = find(env, record).await?;
    record.stop_signal = spec::stop_signal(record.spec.stop_signal, &image.config)?;
    steps.step("create.record", None, env.save_container(record)).await?;

    let undo = Cleanup::Snapshot { container: container.clone() };
    let rootfs = steps.step("create.snapshot", Some(undo), layers(env, &container, &image)).await?;

    if record.spec.mounts.iter().any(|mount| mount.image.is_some()) {
        let undo = Cleanup::Bundle { container: container.clone() };
        steps.step("create.volumes", Some(undo), volumes::mount_all(env, record)).await?;
    }

    let built = build(env, record, &image);
    let (oci, user) = steps.step("create.spec", None, built).await?;
    record.user = user;

    let undo = Cleanup::Bundle { container: container.clone() };
    let written = bundle(env, &container, oci, record.log_path.clone());
    steps.step("create.bundle", Some(undo), written).await?;

    let undo = Cleanup::Task { container: container.clone() };
    record.pid = steps.step("create.task", Some(undo), task(env, record, rootfs)).await?;
    if !record.volume_images.is_empty() {
        let bundle = env.paths.bundle(&container);
        let unmounted = async { blocking(move || volumes::unmount_all(&bundle)).await? };
        steps.step("create.unmount", None, unmounted).await?;
    }
    record.phase = ContainerPhase::Created;
    steps.step("create.commit", None, env.save_container(record)).await
}

async fn find(env: &PodEnv, record: &mut ContainerRecord) -> Result<Image> {
    let name = &record.spec.image;
    let found = env.house.images.ready(name).await.map_err(|e| Error::port("find the image", e))?;
    let image = found.ok_or_else(|| Error::NoImage { name: name.clone() })?;
    let asked = match record.spec.user_specified_image.as_str() {
        "" => name,
        user_specified => user_specified,
    };
    let admitted = env.house.images.admit(&image, asked);
    admitted.map_err(|e| Error::port("use the image", e))?;
    record.image_id.clone_from(&image.id);
    record.image_ref.clone_from(&image.reference);
    Ok(image)
}

async fn layers(env: &PodEnv, container: &ContainerId, image: &Image) -> Result<Rootfs> {
    let prepared = env.house.images.prepare(container, image).await;
    prepared.map_err(|e| Error::port("prepare the root filesystem", e))
}

async fn build(
    env: &PodEnv,
    record: &ContainerRecord,
    image: &Image,
) -> Result<(oci_spec::runtime::Spec, User)> {
    let names = Names {
        passwd: read(&*env.house.images, image, "/etc/passwd").await?,
        group: read(&*env.house.images, image, "/etc/group").await?,
    };
    let (asked, bundle) = (record.spec.clone(), env.paths.bundle(&record.id));
    let host = blocking(move || HostPaths::resolve(&asked, &bundle)).await??;
    let input = spec::Input {
        pod: &env.spec,
        container: &record.spec,
        image: &image.config,
        names: &names,
        paths: &host,
        host: &env.house.host,
        pod_dir: env.paths.dir(),
        hostname: super::files::hostname(env),
        cgroup: env.cgroup(record.id.as_str()),
    };
    spec::build(&input)
}

async fn read(images: &dyn Images, image: &Image, path: &str) -> Result<String> {
    let bytes = images.read_file(image, path).await;
    let bytes = bytes.map_err(|e| Error::port("read the image's users", e))?.unwrap_or_default();
    let some = bytes.get(..bytes.len().min(NAMES_LIMIT)).unwrap_or_default();
    Ok(String::from_utf8_lossy(some).into_owned())
}

async fn bundle(
    env: &PodEnv,
    container: &ContainerId,
    oci: oci_spec::runtime::Spec,
    log: Option<PathBuf>,
) -> Result<()> {
    let dir = env.paths.bundle(container);
    blocking(move || {
        make(&dir)?;
        if let Some(parent) = log.as_deref().and_then(Path::parent) {
            // kubelet has made it; a bare crictl has not.
            make(parent)?;
        }
        let path = dir.join("config.json");
        let text = serde_json::to_vec(&oci).map_err(|e| Error::disk("spell", &path, e.into()))?;
        std::fs::write(&path, text).map_err(|e| Error::disk("write", &path, e))
    })
    .await?
}

fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::disk("make directory", dir, e))
}

async fn task(env: &PodEnv, record: &ContainerRecord, rootfs: Rootfs) -> Result<u32> {
    let task = CreateTask {
        id: record.id.to_string(),
        bundle: env.paths.bundle(&record.id),
        rootfs,
        ids: env.spec.namespaces.ids.clone(),
        terminal: record.spec.tty,
        stdin: record.spec.stdin.then_some(record.spec.stdin_once),
        log: record.log_path.clone(),
    };
    env.shim()?.create(task).await.map_err(|e| Error::shim("create the container", e))
}
