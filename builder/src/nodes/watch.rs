//! `nodezero nodes --watch`: the table redrawn on a terminal; elsewhere a line for each node that changed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use ::kube::Api;
use ::kube::runtime::WatchStreamExt as _;
use ::kube::runtime::watcher::watch_object;
use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;

use super::registry::{Entry, Listing};
use super::{on_terminal, registry, table};
use crate::kube::{ANSWER, Access, NAMESPACE};

/// How often a terminal is drawn anew, for the ages.
const REDRAW: Duration = Duration::from_secs(10);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// Shows the registry and its changes until the process is ended, or nobody reads any more.
///
/// # Errors
/// When the first question fails. Later ones are asked again, and told on standard error.
pub(super) async fn watch(access: &Access, json: bool) -> Result<ExitCode> {
    // The first question must be answered in time, so that a wrong kubeconfig is told at once.
    let mut shown = Shown::new(json);
    match super::find(&access.cluster(Some(ANSWER)).await?).await? {
        Some(listing) => shown.show(listing)?,
        None => eprintln!("there is no node registry yet: waiting for a control node to make it"),
    }
    let cluster = access.cluster(None).await?;
    let api: Api<ConfigMap> = cluster.of(NAMESPACE);
    let mut changes = pin!(watch_object(api, registry::NAME).default_backoff());
    loop {
        let outcome = match tokio::time::timeout(REDRAW, changes.next()).await {
            Err(_) => shown.redraw(),
            Ok(None) => return Ok(ExitCode::SUCCESS),
            Ok(Some(Ok(found))) => {
                let data = found.and_then(|map| map.data).unwrap_or_default();
                shown.show(Listing::parse(&data))
            }
            Ok(Some(Err(error))) => {
                shown.interrupt(&format!("{error}: trying again"));
                Ok(())
            }
        };
        match outcome {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            outcome => outcome.context("writing to standard output")?,
        }
    }
}

/// What is on the terminal, or was written so far.
struct Shown {
    json: bool,
    terminal: bool,
    listing: Option<Listing>,
    /// Lines on the terminal that are drawn over.
    drawn: usize,
}

impl Shown {
    fn new(json: bool) -> Self {
        Self { json, terminal: on_terminal() && !json, listing: None, drawn: 0 }
    }

    fn show(&mut self, listing: Listing) -> io::Result<()> {
        if self.listing.as_ref() == Some(&listing) {
            return Ok(());
        }
        let before = self.listing.replace(listing).unwrap_or_default();
        let listing = self.listing.as_ref().expect("it was put there");
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(listing)?)?;
            return out.flush();
        }
        if self.terminal {
            drop(out);
            return self.redraw();
        }
        for line in changes(&before, listing, Timestamp::now()) {
            writeln!(out, "{line}")?;
        }
        out.flush()
    }

    fn redraw(&mut self) -> io::Result<()> {
        let Some(listing) = self.listing.as_ref().filter(|_| self.terminal) else { return Ok(()) };
        let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(COLUMNS, |size| usize::from(size.ws_col));
        let lines = table::lines(listing, Timestamp::now());
        let mut out = io::stdout().lock();
        if self.drawn > 0 {
            write!(out, "\x1b[{}A\r\x1b[J", self.drawn)?;
        }
        for line in &lines {
            // A line that wraps would be two, and the next drawing would begin too low.
            writeln!(out, "{}", line.chars().take(columns.max(1)).collect::<String>())?;
        }
        self.drawn = lines.len();
        out.flush()
    }

    fn interrupt(&mut self, line: &str) {
        eprintln!("{line}");
        // The table is drawn below what was said.
        self.drawn = 0;
    }
}

/// One line for each node that is new, other than before, or gone.
fn changes(before: &Listing, now: &Listing, time: Timestamp) -> Vec<String> {
    // That it was seen again is no news.
    let unseen = |entry: &Entry| Entry { seen: None, ..entry.clone() };
    let known: BTreeMap<&str, Entry> = before.nodes.iter().map(|node| (&*node.name, unseen(node))).collect();
    let there: Vec<&str> = now.nodes.iter().map(|node| &*node.name).collect();
    let changed = now.nodes.iter().filter(|node| known.get(&*node.name) != Some(&unseen(node)));
    let mut lines: Vec<String> = changed.map(|node| table::alone(node, time)).collect();
    lines.extend(known.keys().filter(|name| !there.contains(name)).map(|name| format!("{name} is gone")));
    let malformed = now.malformed.iter().filter(|entry| !before.malformed.contains(entry));
    lines.extend(malformed.map(|entry| format!("{}: the entry is malformed: {}", entry.name, entry.problem)));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{WORKER, registry};
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let now = Timestamp::UNIX_EPOCH;
        let first = Listing::parse(&registry(&[("worker-1", WORKER)]));
        assert_eq!(changes(&Listing::default(), &first, now).len(), 1, "new");
        let seen = Listing::parse(&registry(&[("worker-1", &WORKER.replace("11:59", "12:00"))]));
        assert_eq!(changes(&first, &seen, now), Vec::<String>::new(), "only seen again");
        let stuck = WORKER.replace("\"ready\",\"step\":null", "\"stuck\",\"step\":\"cluster\"");
        let stuck = Listing::parse(&registry(&[("worker-1", &stuck), ("b", "?")]));
        let told = changes(&first, &stuck, now);
        assert!(told[0].ends_with("stuck  cluster") && told[1].starts_with("b: the entry is malformed"), "{told:?}");
        assert_eq!(changes(&first, &Listing::default(), now), ["worker-1 is gone"]);
    }
}
