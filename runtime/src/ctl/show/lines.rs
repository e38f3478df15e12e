//! Progress where nobody watches: a line for every change of state, none for mere bytes.

use std::collections::HashMap;
use std::io::{self, Write};

use berth_proto::control::Transfer;
use berth_proto::control::transfer::Layer;

use super::frame::{is_there, short};
use super::human;

pub(crate) struct Lines {
    /// What was last said of the whole and of each layer.
    said: HashMap<String, String>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { said: HashMap::new() }
    }

    pub(super) fn show(&mut self, transfer: &Transfer) -> io::Result<()> {
        let text: String = self.news(transfer).iter().map(|line| format!("{line}\n")).collect();
        io::stderr().lock().write_all(text.as_bytes())
    }

    fn news(&mut self, transfer: &Transfer) -> Vec<String> {
        let name = match transfer.reference.as_str() {
            "" => "archive",
            reference => reference,
        };
        let mut news = Vec::new();
        let mut say = |key: String, state: &str, line: String| {
            if self.said.insert(key, state.to_owned()).as_deref() != Some(state) {
                news.push(line);
            }
        };
        say(name.to_owned(), &transfer.state, format!("{name}: {}", transfer.state));
        // A layer that comes in is worth a line once it is known from where.
        let silent = |layer: &Layer| {
            layer.state == "waiting" || layer.state == "receiving" && layer.host.is_empty()
        };
        for layer in transfer.layers.iter().filter(|layer| !silent(layer)) {
            let amount =
                if is_there(layer) { format!(" ({})", human(layer.size)) } else { String::new() };
            let host = match (layer.state.as_str(), layer.host.as_str()) {
                ("receiving" | "resumed", host) if !host.is_empty() => format!(" from {host}"),
                _ => String::new(),
            };
            let line = format!("{}: {}{host}{amount}", short(&layer.digest), layer.state);
            say(layer.digest.clone(), &layer.state, line);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_said() {
        let mut lines = Lines::new();
        let layer = |state: &str, transferred| Layer {
            digest: format!("sha256:{}", "a".repeat(64)),
            size: 1000,
            transferred,
            state: state.to_owned(),
            host: "h:1".to_owned(),
            unpacked: 0,
        };
        let transfer = |state: &str, layers| Transfer {
            reference: "x:1".to_owned(),
            state: state.to_owned(),
            layers,
            received: 0,
        };
        let mut news = |state, layers| lines.news(&transfer(state, layers));
        assert_eq!(news("resolving", vec![]), ["x:1: resolving"]);
        let want = ["x:1: receiving", "aaaaaaaaaaaa: receiving from h:1"];
        assert_eq!(news("receiving", vec![layer("receiving", 1)]), want);
        assert!(news("receiving", vec![layer("receiving", 500)]).is_empty());
        let want = ["aaaaaaaaaaaa: done (1.00 kB)"];
        assert_eq!(news("receiving", vec![layer("done", 1000)]), want);
    }
}
