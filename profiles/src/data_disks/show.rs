//! A plan as a table, for consoles and terminals.

use std::fmt;

use super::{Plan, Planned, Verdict};
use crate::size::human_size;

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Prepare(_) => "prepare",
            Self::Keep(_) => "keep",
            Self::Continue(..) => "continue",
            Self::Wipe { .. } => "wipe",
            Self::Refuse { .. } => "refuse",
            Self::Failing(_) => "failing",
            Self::NotSelected { .. } => "-",
        }
    }

    /// Why, or what comes of it.
    #[must_use]
    pub fn reason(&self) -> String {
        let becomes = |target: &super::Target| format!("{} for {}", target.filesystem, target.entry);
        match self {
            Self::Prepare(target) => format!("blank; becomes {}", becomes(target)),
            Self::Keep(target) => format!("prepared by this node; {}", becomes(target)),
            Self::Continue(target, stage) => format!("begun by this node, {stage}; becomes {}", becomes(target)),
            Self::Wipe { target, found } => {
                let consent = target.consent.unwrap_or_default();
                format!("holds {found}; lost by consent {consent}; becomes {}", becomes(target))
            }
            Self::Refuse { why, .. } => why.clone(),
            Self::Failing(missing) => missing.why.clone(),
            Self::NotSelected { why } => why.join("; "),
        }
    }
}

/// One row for each disk, then the disks that the node goes on without, then the errors.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["DISK", "SIZE", "SERIAL", "VERDICT", "REASON"].map(str::to_owned);
        let rows: Vec<[String; 5]> = std::iter::once(head).chain(self.disks.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 4] = std::array::from_fn(width);
        for (index, row) in rows.iter().enumerate() {
            let line = if index > 0 { "\n" } else { "" };
            write!(f, "{line}")?;
            for (cell, width) in row.iter().zip(widths) {
                write!(f, "{cell:width$}  ")?;
            }
            write!(f, "{}", row[4])?;
        }
        for missing in &self.missing {
            write!(f, "\nmissing: {missing}")?;
        }
        for error in &self.errors {
            write!(f, "\nerror: {error}")?;
        }
        if !self.errors.is_empty() {
            write!(f, "\nnothing is done to any disk")?;
        }
        Ok(())
    }
}

fn row(planned: &Planned) -> [String; 5] {
    let Planned { disk, verdict } = planned;
    let serial = disk.serial.as_ref().or(disk.wwn.as_ref()).map_or("-", String::as_str);
    [disk.path.clone(), human_size(disk.size), serial.to_owned(), verdict.word().to_owned(), verdict.reason()]
}
