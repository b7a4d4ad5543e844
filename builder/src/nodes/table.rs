//! The registry as a person reads it. Pure.

use jiff::Timestamp;
use nodezero_profile::Role;

use super::registry::{Entry, Listing};

/// The columns. The message comes last, as it may be long: what a node is stuck at, and why; or what is not as it should be
/// although it is ready.
const HEADER: [&str; 8] = ["NAME", "ROLE", "VERSION", "MESH ADDRESS", "DISKS", "AGE", "HEALTH", "MESSAGE"];

/// The table, a line each, without line ends. `now` is what ages are counted to.
#[must_use]
pub fn lines(listing: &Listing, now: Timestamp) -> Vec<String> {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(listing.nodes.iter().map(|node| row(node, now)));
    let mut widths = [0; HEADER.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut lines: Vec<String> = rows.iter().map(|row| line(row, &widths)).collect();
    let malformed = listing.malformed.iter();
    lines
        .extend(malformed.map(|entry| format!("{}: the entry is malformed: {}", entry.name, one_line(&entry.problem))));
    lines
}

/// One node on a line of its own, for who follows changes.
#[must_use]
pub fn alone(node: &Entry, now: Timestamp) -> String {
    line(&row(node, now), &[0; HEADER.len()])
}

fn line(cells: &[String; HEADER.len()], widths: &[usize; HEADER.len()]) -> String {
    let padded: Vec<String> = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
    padded.join("  ").trim_end().to_owned()
}

fn row(node: &Entry, now: Timestamp) -> [String; HEADER.len()] {
    let or_none = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), one_line);
    let bytes: u64 = node.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.size));
    let disks = match node.disks.len() {
        0 => "-".to_owned(),
        count => format!("{count}, {}", decimal(bytes)),
    };
    let stuck = match (node.stuck_at(), node.message.as_deref()) {
        (Some(step), Some(message)) => format!("{}: {}", one_line(step), one_line(message)),
        (Some(text), None) | (None, Some(text)) => one_line(text),
        (None, None) => String::new(),
    };
    [
        node.name.clone(),
        node.role.map_or("-", Role::name).to_owned(),
        or_none(&node.version),
        or_none(&node.mesh_address),
        disks,
        node.registered.map_or("-".to_owned(), |registered| age(registered, now)),
        node.health.to_string(),
        stuck,
    ]
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

/// A size as disks are sold: in decimal units.
fn decimal(bytes: u64) -> String {
    let (unit, divisor) = match bytes {
        0..1_000_000_000 => ("MB", 1_000_000),
        1_000_000_000..1_000_000_000_000 => ("GB", 1_000_000_000),
        _ => ("TB", 1_000_000_000_000_u64),
    };
    format!("{}.{} {unit}", bytes / divisor, bytes % divisor * 10 / divisor)
}

/// How long ago, in the two largest units that matter.
fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days @ 1..10, hours, _) => format!("{days}d{hours}h"),
        (days, _, _) => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{WORKER, registry};
    use super::*;

    fn at(time: &str) -> Timestamp {
        time.parse().expect("a time")
    }

    #[test]
    fn the_table_shows_what_is_known() {
        let data = registry(&[
            ("worker-1", WORKER),
            (
                "vps-1",
                r#"{"name":"vps-1","role":"edge","health":"stuck","step":"mesh","message":"no answer\n  from it"}"#,
            ),
            ("zz", "[]"),
        ]);
        let table = lines(&Listing::parse(&data), at("2026-03-03T12:00:00Z"));
        assert_eq!(
            table[..3],
            [
                "NAME      ROLE    VERSION  MESH ADDRESS  DISKS       AGE   HEALTH  MESSAGE",
                "vps-1     edge    -        -             -           -     stuck   mesh: no answer; from it",
                "worker-1  worker  0.1.0    100.64.0.2    2, 36.0 TB  2d2h  ready",
            ]
        );
        assert!(table[3].starts_with("zz: the entry is malformed: "), "{table:#?}");
        let listing = Listing::parse(&data);
        assert!(alone(&listing.nodes[0], at("2026-03-03T12:00:00Z")).ends_with("stuck  mesh: no answer; from it"));
    }

    #[test]
    fn only_who_is_stuck_has_a_step() {
        let of = |health: &str, step: &str, message: &str| {
            let json = format!(r#"{{"name":"n","role":null,"health":"{health}","step":{step},"message":{message}}}"#);
            let listing = Listing::parse(&registry(&[("n", &json)]));
            alone(listing.nodes.first().expect("an entry"), at("2026-03-03T12:00:00Z"))
        };
        for (health, step, message, expected) in [
            ("ready", r#""confirm""#, "null", "n  -  -  -  -  -  ready"),
            ("notReady", r#""confirm""#, r#""kubelet says""#, "n  -  -  -  -  -  not ready  kubelet says"),
            ("stuck", r#""mesh""#, "null", "n  -  -  -  -  -  stuck  mesh"),
            ("stuck", r#""mesh""#, r#""no answer""#, "n  -  -  -  -  -  stuck  mesh: no answer"),
            ("unknown", r#""mesh""#, r#""no answer""#, "n  -  -  -  -  -  unknown  mesh: no answer"),
            (
                "unknown",
                "null",
                r#""it has not registered yet""#,
                "n  -  -  -  -  -  unknown  it has not registered yet",
            ),
        ] {
            assert_eq!(of(health, step, message), expected, "{health} {step} {message}");
        }
    }

    #[test]
    fn ages_have_two_units() {
        for (since, expected) in [
            ("2026-03-03T12:00:10Z", "0s"),
            ("2026-03-03T11:59:18Z", "42s"),
            ("2026-03-03T11:18:00Z", "42m"),
            ("2026-03-03T08:48:00Z", "3h12m"),
            ("2026-02-22T08:48:00Z", "9d3h"),
            ("2025-03-03T12:00:00Z", "365d"),
        ] {
            assert_eq!(age(at(since), at("2026-03-03T12:00:00Z")), expected, "{since}");
        }
    }
}
