//! `berthctl fsck`, `du` and `gc`.

use berth_proto::control::{
    DiskUsageRequest, DiskUsageResponse, ExplainRequest, FsckProgress, FsckReport, FsckRequest,
    GcRequest, LayerCheck, Transfer, Usage, fsck_response::Event,
};
use berth_proto::cri::ListImagesRequest;
use serde_json::{Value, json};

use crate::archive::cut;
use crate::args::{Global, Output};
use crate::client::Client;
use crate::outcome::{Failure, Outcome};
use crate::show::{Progress, human, print, table};

pub(crate) async fn fsck(global: &Global, only: Option<String>, repair: bool) -> Outcome {
    let mut client = Client::connect(global).await?;
    let request = FsckRequest { only: only.unwrap_or_default(), repair };
    let mut answer = client.control.fsck(request).await?.into_inner();
    let mut bar: Option<Progress> = None;
    while let Some(message) = answer.message().await? {
        match message.event {
            Some(Event::Progress(progress)) => {
                let bar = bar.get_or_insert_with(|| Progress::new(global, Some(progress.bytes)));
                bar.show(checking(&progress));
            }
            Some(Event::Done(report)) => {
                bar.iter_mut().for_each(Progress::end);
                return show_report(global, &report);
            }
            None => {}
        }
    }
    Err(cut())
}

fn checking(progress: &FsckProgress) -> Transfer {
    let FsckProgress { layers, checked, bytes_checked, .. } = progress;
    let reference = "layers".to_owned();
    let state = format!("{checked} of {layers} checked");
    Transfer { reference, state, received: *bytes_checked, ..Transfer::default() }
}

fn show_report(global: &Global, report: &FsckReport) -> Outcome {
    match global.output {
        Output::Json => print(&format!("{}\n", report_document(report)))?,
        Output::Table => print(&report_text(report))?,
    }
    if report.clean {
        return Ok(());
    }
    Err(Failure::Damaged("the store is damaged".to_owned()))
}

fn report_text(report: &FsckReport) -> String {
    let mut text = String::new();
    let mut say = |line: String| text.push_str(&format!("{line}\n"));
    for layer in report.layers.iter().filter(|layer| layer.health != "sound") {
        say(format!("{}: {} {}", layer.health, layer.key, layer.reason).trim_end().to_owned());
        layer.damage.iter().for_each(|one| say(format!("  {}: {}", one.path, one.what)));
        layer.images.iter().for_each(|image| say(format!("  of image {image}")));
    }
    report.orphans.iter().for_each(|path| say(format!("orphan: {path}")));
    report.incomplete.iter().for_each(|id| say(format!("incomplete: image {id}")));
    report.repaired.iter().for_each(|id| say(format!("repaired: image {id}")));
    report
        .failed
        .iter()
        .for_each(|one| say(format!("not repaired: image {}: {}", one.id, one.reason)));
    report.without_image.iter().for_each(|key| {
        say(format!("not repaired: {key}: no image has it, only containers do"));
    });
    let sound = report.layers.iter().filter(|layer| layer.health == "sound").count();
    say(format!("{sound} of {} layers are sound", report.layers.len()));
    text
}

fn report_document(report: &FsckReport) -> Value {
    let failed = report.failed.iter().map(|one| json!({"id": one.id, "reason": one.reason}));
    json!({
        "event": "done", "clean": report.clean,
        "layers": Value::from_iter(report.layers.iter().map(check_document)),
        "orphans": report.orphans, "incomplete": report.incomplete,
        "repaired": report.repaired, "failed": Value::from_iter(failed),
        "withoutImage": report.without_image,
    })
}

fn check_document(layer: &LayerCheck) -> Value {
    let damage = layer.damage.iter().map(|one| json!({"path": one.path, "what": one.what}));
    json!({
        "key": layer.key, "path": layer.path, "images": layer.images, "health": layer.health,
        "damage": Value::from_iter(damage), "reason": layer.reason,
    })
}

pub(crate) async fn du(global: &Global, all: bool) -> Outcome {
    let mut client = Client::connect(global).await?;
    let found = client.control.disk_usage(DiskUsageRequest {}).await?.into_inner();
    match global.output {
        Output::Json => print(&format!("{}\n", usage_document(&found))),
        Output::Table => print(&usage_text(&found, all)),
    }
}

fn of(usage: Option<&Usage>) -> Usage {
    usage.copied().unwrap_or_default()
}

fn usage_text(found: &DiskUsageResponse, all: bool) -> String {
    let mut rows = vec![["IMAGE", "DISK", "UNIQUE"].map(str::to_owned)];
    for image in &found.images {
        let name = image.tags.first().unwrap_or(&image.id).clone();
        rows.push([name, human(image.bytes), human(image.unique_bytes)]);
    }
    let mut text = table(&rows) + "\n";
    if all {
        let mut rows = vec![["LAYER", "DISK", "IMAGES", "CONTAINERS"].map(str::to_owned)];
        rows.extend(found.layers.iter().map(|layer| {
            let bytes = human(of(layer.usage.as_ref()).bytes);
            let (images, containers) = (layer.images.to_string(), layer.containers.to_string());
            [layer.key.clone(), bytes, images, containers]
        }));
        text += &(table(&rows) + "\n");
        let mut rows = vec![["CONTAINER", "DISK"].map(str::to_owned)];
        rows.extend(
            found
                .containers
                .iter()
                .map(|container| [container.id.clone(), human(of(container.usage.as_ref()).bytes)]),
        );
        text += &(table(&rows) + "\n");
    }
    text + &totals(found)
}

fn totals(found: &DiskUsageResponse) -> String {
    let sum = |all: &mut dyn Iterator<Item = Usage>| {
        all.fold(Usage::default(), |sum, one| Usage {
            bytes: sum.bytes.saturating_add(one.bytes),
            inodes: sum.inodes.saturating_add(one.inodes),
        })
    };
    let layers = sum(&mut found.layers.iter().map(|layer| of(layer.usage.as_ref())));
    let containers = sum(&mut found.containers.iter().map(|one| of(one.usage.as_ref())));
    let mut rows = vec![["TOTAL", "DISK", "INODES"].map(str::to_owned)];
    for (name, usage) in [
        ("layers", layers),
        ("containers", containers),
        ("blobs", of(found.blobs.as_ref())),
        ("replaced layers in use", of(found.retired.as_ref())),
        ("trash", of(found.trash.as_ref())),
    ] {
        rows.push([name.to_owned(), human(usage.bytes), usage.inodes.to_string()]);
    }
    table(&rows)
}

fn usage_document(found: &DiskUsageResponse) -> Value {
    let usage = |usage: Option<&Usage>| {
        let Usage { bytes, inodes } = of(usage);
        json!({"bytes": bytes, "inodes": inodes})
    };
    let images = found.images.iter().map(|image| {
        json!({
            "id": image.id, "tags": image.tags, "bytes": image.bytes,
            "uniqueBytes": image.unique_bytes,
        })
    });
    let layers = found.layers.iter().map(|layer| {
        json!({
            "key": layer.key, "path": layer.path, "usage": usage(layer.usage.as_ref()),
            "images": layer.images, "containers": layer.containers,
        })
    });
    let containers = found
        .containers
        .iter()
        .map(|one| json!({"id": one.id, "usage": usage(one.usage.as_ref())}));
    json!({
        "images": Value::from_iter(images), "layers": Value::from_iter(layers),
        "containers": Value::from_iter(containers), "blobs": usage(found.blobs.as_ref()),
        "retired": usage(found.retired.as_ref()), "trash": usage(found.trash.as_ref()),
    })
}

pub(crate) async fn gc(global: &Global, dry_run: bool) -> Outcome {
    let mut client = Client::connect(global).await?;
    let removed = client.control.gc(GcRequest { dry_run }).await?.into_inner().removed;
    let freed = removed.iter().map(|one| of(one.usage.as_ref()).bytes);
    let freed = freed.fold(0, u64::saturating_add);
    if global.output == Output::Json {
        let removed = removed.iter().map(|one| {
            let Usage { bytes, inodes } = of(one.usage.as_ref());
            json!({"path": one.path, "reason": one.reason, "bytes": bytes, "inodes": inodes})
        });
        let removed = Value::from_iter(removed);
        let done = json!({"dryRun": dry_run, "removed": removed, "bytes": freed});
        return print(&format!("{done}\n"));
    }
    let verb = if dry_run { "would remove" } else { "removed" };
    let lines = removed.iter().map(|one| {
        let bytes = human(of(one.usage.as_ref()).bytes);
        format!("{verb} {} ({bytes}): {}\n", one.path, one.reason)
    });
    let count = removed.len();
    let sum = format!("{verb} {count} things, {}\n", human(freed));
    print(&lines.chain([sum]).collect::<String>())
}

/// Why something is kept; with an empty name, why each image is.
pub(crate) async fn explain(global: &Global, name: &str) -> Outcome {
    let mut client = Client::connect(global).await?;
    let names = if name.is_empty() {
        let listed = client.images.list_images(ListImagesRequest::default()).await?.into_inner();
        listed.images.into_iter().map(|image| image.id).collect()
    } else {
        vec![name.to_owned()]
    };
    for name in names {
        let request = ExplainRequest { name: name.clone() };
        let reasons = client.control.explain(request).await?.into_inner().reasons;
        if global.output == Output::Json {
            let reasons = reasons.iter().map(|one| json!({"kind": one.kind, "text": one.text}));
            let reasons = Value::from_iter(reasons);
            print(&format!("{}\n", json!({"name": name, "reasons": reasons})))?;
            continue;
        }
        let mut text = format!("{name}\n");
        reasons.iter().for_each(|one| text.push_str(&format!("  kept: {}\n", one.text)));
        if reasons.is_empty() {
            text.push_str("  nothing keeps it: it will go\n");
        }
        print(&text)?;
    }
    Ok(())
}
