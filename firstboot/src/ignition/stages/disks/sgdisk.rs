//! `sgdisk`: its arguments, what it says, and running it.
//!
//! Partition tables are changed by the distribution's tool and not by a library of ours: the `gpt` crate renumbers
//! partitions and writes without barriers. What it wrote is read back and compared by `disk::table`.

use std::path::Path;

use anyhow::{Context, ensure};

use super::partitions::{Landed, Operation, Place, Wanted};
use crate::command;
use crate::ignition::log::Log;

/// The program, found in `PATH`.
const PROGRAM: &str = "sgdisk";

/// Asks where partitions would be after an operation. Nothing is written.
///
/// # Errors
/// When the operation is not possible.
pub(crate) fn pretend(device: &Path, operation: &Operation, ask: &[u32], log: Log) -> anyhow::Result<Landed> {
    let mut arguments = vec!["--pretend".to_owned()];
    if operation.clear {
        // `--zap-all` would keep the old entries in memory where it writes nothing, and an MBR needs consent of its own.
        arguments.extend(["--clear", "--mbrtogpt"].map(str::to_owned));
    }
    arguments.extend(arguments_of(operation));
    arguments.extend(ask.iter().map(|number| format!("--info={number}")));
    let text = run(device, &arguments, log)?;
    parse_info(&text, ask)
}

/// Writes the table. Wiping alone leaves a disk without one.
///
/// # Errors
/// When `sgdisk` fails.
pub(crate) fn commit(device: &Path, operation: &Operation, log: Log) -> anyhow::Result<()> {
    if operation.clear {
        let zap = ["--zap-all".to_owned()];
        if let Err(error) = run(device, &zap, log) {
            // A damaged table makes it fail once, with the damage gone.
            log.info(format_args!("wiping again: {error:#}"));
            run(device, &zap, log)?;
        }
    }
    let arguments = arguments_of(operation);
    if !arguments.is_empty() {
        run(device, &arguments, log)?;
    }
    Ok(())
}

/// The arguments for deletions and creations.
fn arguments_of(operation: &Operation) -> Vec<String> {
    let delete = operation.delete.iter().map(|number| format!("--delete={number}"));
    delete.chain(operation.create.iter().flat_map(creation)).collect()
}

/// The arguments for one creation.
fn creation(wanted: &Wanted) -> Vec<String> {
    let number = wanted.number;
    let (start, sectors) = (wanted.start.unwrap_or(0), wanted.sectors.unwrap_or(0));
    let mut arguments = vec![format!("--new={number}:{start}:+{sectors}")];
    if let Some(label) = wanted.label.as_ref().filter(|label| !label.is_empty()) {
        arguments.push(format!("--change-name={number}:{label}"));
    }
    if let Some(guid) = wanted.type_guid {
        arguments.push(format!("--typecode={number}:{guid}"));
    }
    if let Some(guid) = wanted.guid {
        arguments.push(format!("--partition-guid={number}:{guid}"));
    }
    if wanted.attributes != 0 {
        arguments.push(format!("--attributes={number}:=:{:x}", wanted.attributes));
    }
    arguments
}

/// Runs it on a device.
fn run(device: &Path, arguments: &[String], log: Log) -> anyhow::Result<String> {
    let path = device.to_str().with_context(|| format!("{} is not UTF-8", device.display()))?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain([path]).collect();
    log.info(format_args!("running {PROGRAM} {}", arguments.join(" ")));
    let output = command::run(PROGRAM, &arguments, b"", |code| code == 0)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses one block of `--info` for each number, in that order.
fn parse_info(text: &str, ask: &[u32]) -> anyhow::Result<Landed> {
    let sectors = |prefix: &str| -> Vec<Option<u64>> {
        let values = text.lines().filter_map(|line| line.strip_prefix(prefix)?.split(' ').next());
        values.map(|value| value.parse().ok()).collect()
    };
    let (first, last) = (sectors("First sector: "), sectors("Last sector: "));
    ensure!(
        first.len() == ask.len() && last.len() == ask.len(),
        "{PROGRAM} says where {} partitions are, asked about {}:\n{text}",
        first.len().min(last.len()),
        ask.len()
    );
    let place = |(start, end): (Option<u64>, Option<u64>)| {
        let (start, end) = (start?, end?);
        Some(Place { start, sectors: end.checked_sub(start)?.checked_add(1)? })
    };
    let places = first.into_iter().zip(last).map(place);
    let landed: Option<Landed> = ask.iter().zip(places).map(|(number, place)| Some((*number, place?))).collect();
    landed.with_context(|| format!("parsing what {PROGRAM} says:\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_exact() {
        let full = Wanted {
            number: 3,
            start: Some(2048),
            sectors: Some(4096),
            label: Some("my data".into()),
            type_guid: Some("4f68bce3-e8cd-4db1-96e7-fbcaf984b709".parse().expect("valid")),
            guid: Some("01234567-89ab-cdef-0123-456789abcdef".parse().expect("valid")),
            attributes: 4 | 1 << 63,
            exist: true,
            ..Wanted::default()
        };
        let bare = Wanted { number: 1, label: Some(String::new()), exist: true, ..Wanted::default() };
        let operation = Operation { clear: true, delete: vec![3, 7], create: vec![full, bare] };
        assert_eq!(
            arguments_of(&operation),
            [
                "--delete=3",
                "--delete=7",
                "--new=3:2048:+4096",
                "--change-name=3:my data",
                "--typecode=3:4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
                "--partition-guid=3:01234567-89ab-cdef-0123-456789abcdef",
                "--attributes=3:=:8000000000000004",
                "--new=1:0:+0"
            ]
        );
    }

    #[test]
    fn answers_parse() {
        let block = |first: &str, last: &str| {
            format!("Partition GUID code: X\nFirst sector: {first} (at 1.0 MiB)\nLast sector: {last} (at 2.0 MiB)\n")
        };
        let two = block("2048", "4095") + &block("4096", "4096");
        let landed = parse_info(&two, &[1, 5]).expect("parses");
        assert_eq!(landed[&1], Place { start: 2048, sectors: 2048 });
        assert_eq!(landed[&5], Place { start: 4096, sectors: 1 });
        for (case, text, ask) in [
            ("one missing", block("2048", "4095"), &[1, 2][..]),
            ("one too many", two.clone(), &[1]),
            ("no number", block("x", "4095"), &[1]),
            ("end before start", block("4096", "2048"), &[1]),
            ("nothing", String::new(), &[1]),
            ("no last sector", "First sector: 34 (at 17.0 KiB)\n".into(), &[1]),
        ] {
            assert!(parse_info(&text, ask).is_err(), "{case}");
        }
    }
}
