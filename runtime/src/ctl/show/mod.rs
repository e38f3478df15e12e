//! Results and progress: for people, and as JSON for programs.

mod bar;
mod frame;
mod lines;
mod terminal;

use std::io::{self, IsTerminal, Write};

use berth_proto::control::{ImageInspectResponse, ImageLayer, Transfer};
use serde_json::{Value, json};

use crate::args::{Global, Output};
use crate::outcome::{Failure, Outcome};
use bar::Bar;
use lines::Lines;

/// Writes to standard output.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // Who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| Failure::io("write to", "standard output", error)),
    }
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0_usize; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Bytes as people say them: three digits and a decimal unit.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let mut scale = 1_u64;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        unit += 1;
        scale *= 1000;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    let whole = bytes / scale;
    let tenths = (bytes % scale).saturating_mul(10) / scale;
    let hundredths = (bytes % scale).saturating_mul(100) / scale;
    match (unit, whole) {
        (0, _) | (_, 100..) => format!("{whole} {name}"),
        (_, 10..) => format!("{whole}.{tenths} {name}"),
        _ => format!("{whole}.{hundredths:02} {name}"),
    }
}

/// A transfer under way, on standard error; as JSON on standard output.
pub(crate) enum Progress {
    Bar(Bar),
    Lines(Lines),
    Json,
    Quiet,
}

impl Progress {
    /// `length` is that of the archive to be sent, if known.
    pub(crate) fn new(global: &Global, length: Option<u64>) -> Self {
        match global.output {
            _ if global.quiet => Self::Quiet,
            Output::Json => Self::Json,
            Output::Table if io::stderr().is_terminal() => Self::Bar(Bar::new(length)),
            Output::Table => Self::Lines(Lines::new()),
        }
    }

    pub(crate) fn show(&mut self, transfer: Transfer) {
        // Progress that cannot be shown is no reason to stop the work.
        let _shown = match self {
            Self::Bar(bar) => bar.show(transfer),
            Self::Lines(lines) => lines.show(&transfer),
            Self::Json => print(&format!("{}\n", progress(&transfer))).map_err(io::Error::other),
            Self::Quiet => Ok(()),
        };
    }

    /// The transfer has come to its end.
    pub(crate) fn end(&mut self) {
        if let Self::Bar(bar) = self {
            let _shown = bar.end();
        }
    }
}

fn progress(transfer: &Transfer) -> Value {
    let layers = transfer.layers.iter().map(|layer| {
        json!({
            "digest": layer.digest, "size": layer.size, "transferred": layer.transferred,
            "unpacked": layer.unpacked, "state": layer.state, "host": layer.host,
        })
    });
    json!({
        "event": "progress", "reference": transfer.reference, "state": transfer.state,
        "received": transfer.received, "layers": Value::from_iter(layers),
    })
}

/// An image with all that is known of it. The manifest and the configuration are shown as the
/// JSON that they are.
pub(crate) fn inspection(image: &ImageInspectResponse) -> Value {
    let document = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let config = document(&image.config);
    let verified = image.verifications.iter().map(|one| {
        json!({
            "rule": one.rule, "key": one.key, "subject": one.subject,
            "repository": one.repository,
        })
    });
    json!({
        "id": image.id, "tags": image.tags, "digests": image.digests, "pinned": image.pinned,
        "size": image.size, "verified": Value::from_iter(verified),
        "manifestDigest": image.manifest_digest, "manifest": document(&image.manifest),
        "layers": Value::from_iter(image.layers.iter().map(layer)),
        "history": config.get("history").cloned().unwrap_or(json!([])),
        "config": config,
    })
}

fn layer(layer: &ImageLayer) -> Value {
    json!({
        "digest": layer.digest, "mediaType": layer.media_type, "size": layer.size,
        "diffId": layer.diff_id, "chainId": layer.chain_id, "key": layer.key,
        "path": layer.path, "unpackedBytes": layer.unpacked_bytes,
        "unpackedInodes": layer.unpacked_inodes, "images": layer.images,
        "blobKept": layer.blob_kept,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (12_345, "12.3 kB"),
            (999_999, "999 kB"),
            (304_000_000, "304 MB"),
            (1_070_000_000, "1.07 GB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["A", "B"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }
}
