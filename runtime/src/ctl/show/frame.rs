//! What a progress bar shows, as lines. Pure.

use berth_proto::control::Transfer;
use berth_proto::control::transfer::Layer;

use super::human;

/// Cells of a bar.
const BAR: usize = 24;

/// A transfer with what is known beside it.
pub(super) struct View<'a> {
    pub(super) transfer: &'a Transfer,
    /// The archive's length, if it is known.
    pub(super) length: Option<u64>,
    /// Bytes per second.
    pub(super) rate: u64,
    pub(super) columns: usize,
    pub(super) rows: usize,
}

impl View<'_> {
    /// The lines, none wider than the screen, no more than fit on it.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.head()];
        let room = self.rows.saturating_sub(2);
        let layers = &self.transfer.layers;
        if layers.len() <= room {
            lines.extend(layers.iter().map(layer_line));
        } else {
            // What moves is more worth seeing than what waits or is done.
            let moving = layers.iter().filter(|layer| is_moving(layer));
            lines.extend(moving.take(room.saturating_sub(1)).map(layer_line));
            let done = layers.iter().filter(|layer| is_there(layer)).count();
            lines.push(format!("  {done} of {} layers done", layers.len()));
        }
        lines.iter().map(|line| line.chars().take(self.columns.max(1)).collect()).collect()
    }

    fn head(&self) -> String {
        let (done, total) = amounts(self.transfer, self.length);
        let Transfer { reference, state, .. } = self.transfer;
        let name = if reference.is_empty() { "archive" } else { reference };
        let mut line = format!("{name}: {state}");
        if done > 0 || total.is_some() {
            line.push_str(&format!("  {}", human(done)));
        }
        if let Some(total) = total {
            let percent = u128::from(done) * 100 / u128::from(total.max(1));
            line.push_str(&format!(" of {} ({}%)", human(total), percent.min(100)));
        }
        if self.rate > 0 {
            line.push_str(&format!("  {}/s", human(self.rate)));
            let left = total.map(|total| total.saturating_sub(done) / self.rate);
            if let Some(left) = left.filter(|_| total > Some(done)) {
                line.push_str(&format!("  {} left", time(left)));
            }
        }
        line
    }
}

/// Bytes that are here and, where it is known, of how many.
pub(super) fn amounts(transfer: &Transfer, length: Option<u64>) -> (u64, Option<u64>) {
    if transfer.layers.is_empty() {
        return (transfer.received, length);
    }
    let new = || transfer.layers.iter().filter(|layer| layer.state != "shared");
    let done = new().fold(0_u64, |sum, l| sum.saturating_add(l.transferred.min(l.size)));
    let total = new().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
    (done, Some(total))
}

/// Twelve digits of a digest.
pub(super) fn short(digest: &str) -> String {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.chars().take(12).collect()
}

fn is_moving(layer: &Layer) -> bool {
    !is_there(layer) && layer.state != "waiting"
}

pub(super) fn is_there(layer: &Layer) -> bool {
    matches!(layer.state.as_str(), "done" | "shared")
}

fn layer_line(layer: &Layer) -> String {
    let (digest, state) = (short(&layer.digest), &layer.state);
    let size = human(layer.size);
    match state.as_str() {
        "waiting" | "done" | "shared" => format!("  {digest}  {state:9}  {size}"),
        _ => {
            let moved = layer.transferred.min(layer.size);
            let host =
                if layer.host.is_empty() { String::new() } else { format!("  {}", layer.host) };
            format!(
                "  {digest}  {state:9}  [{}]  {} of {size}{host}",
                bar(moved, layer.size),
                human(moved)
            )
        }
    }
}

fn bar(done: u64, total: u64) -> String {
    let cells = u128::from(done) * BAR as u128 / u128::from(total.max(1));
    let cells = usize::try_from(cells).unwrap_or(BAR).min(BAR);
    format!("{}{}", "=".repeat(cells), " ".repeat(BAR - cells))
}

fn time(seconds: u64) -> String {
    match seconds {
        0 => "1 s".to_owned(),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, size: u64, transferred: u64, state: &str) -> Layer {
        let (digest, state) = (format!("sha256:{name}"), state.to_owned());
        Layer { digest, size, transferred, state, host: "h:1".to_owned(), unpacked: 0 }
    }

    fn transfer(layers: Vec<Layer>) -> Transfer {
        let (reference, state) = ("x.test/a:1".to_owned(), "receiving".to_owned());
        Transfer { reference, state, layers, received: 0 }
    }

    fn view(transfer: &Transfer, columns: usize, rows: usize) -> View<'_> {
        View { transfer, length: None, rate: 10_000_000, columns, rows }
    }

    #[test]
    fn each_layer_has_its_line() {
        let transfer = transfer(vec![
            layer("aaaaaaaaaaaabbbb", 100_000_000, 50_000_000, "receiving"),
            layer("bbbbbbbbbbbbcccc", 1_000, 0, "waiting"),
            layer("cccccccccccc", 7_000_000, 0, "shared"),
        ]);
        let lines = view(&transfer, 200, 50).lines();
        let want = [
            "x.test/a:1: receiving  50.0 MB of 100 MB (49%)  10.0 MB/s  5 s left",
            "  aaaaaaaaaaaa  receiving  [============            ]  50.0 MB of 100 MB  h:1",
            "  bbbbbbbbbbbb  waiting    1.00 kB",
            "  cccccccccccc  shared     7.00 MB",
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn the_screen_is_never_overrun() {
        let mut layers: Vec<_> = (0..40).map(|n| layer(&n.to_string(), 10, 0, "waiting")).collect();
        layers.push(layer("moves", 10, 5, "receiving"));
        layers.push(layer("there", 10, 10, "done"));
        let transfer = transfer(layers);
        let lines = view(&transfer, 30, 10).lines();
        assert!(lines.len() < 10 && lines.iter().all(|line| line.chars().count() <= 30));
        assert!(lines.iter().any(|line| line.contains("moves")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("1 of 42 layers done")), "{lines:?}");
        assert!(!view(&transfer, 0, 0).lines().is_empty());
    }

    #[test]
    fn an_archive_is_told_by_its_length() {
        let state = "receiving".to_owned();
        let transfer = Transfer { state, received: 30, ..Transfer::default() };
        let view = View { transfer: &transfer, length: Some(40), rate: 0, columns: 80, rows: 24 };
        assert_eq!(view.lines(), ["archive: receiving  30 B of 40 B (75%)"]);
        let view = View { length: None, ..view };
        assert_eq!(view.lines(), ["archive: receiving  30 B"]);
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(0, "1 s"), (59, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")] {
            assert_eq!(time(seconds), text);
        }
    }
}
