//! Data disks: the step that makes of the machine's disks what the profile says, or touches none of them.
//!
//! - what becomes of each disk is decided by [`nodezero_profile::data_disks`], which the operator's side asks too;
//! - [`prepare`] gives a blank disk its partition table and file system, and goes on with one that was cut short;
//! - [`wipe`] loses what a consent says may be lost;
//! - [`mount`] has systemd mount it; [`longhorn`] tells what else Longhorn needs.
//!
//! Nothing is done to any disk while one of them is in doubt. Each disk is looked at again, under a lock and by its serial
//! number, just before it is written to.
//!
//! Once all disks were prepared and mounted, the node notes them. One of those that is away, cannot be read or cannot be
//! mounted at a later start is told, and the node goes on without it: what is on its other disks shall not be lost to the
//! cluster, too, and who is to mend it shall see it there.
//!
//! Left out: unmounting what the profile no longer names, which loses nothing by staying, and disks that fail or come back
//! later: Longhorn watches the former, and the latter are for the next start.

mod device;
mod longhorn;
mod mount;
mod prepare;
mod wipe;

#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nodezero_profile::data_disks::{
    Consent, ConsentStage, Known, KnownDisk, Missing, Plan, Planned, Records, Target, Verdict, is_short_of_disks, plan,
};
use nodezero_profile::inventory::{Content, Disk, Inventory, Transport};
use nodezero_profile::node::Node;

use self::device::Machine;
use self::prepare::Bench;
use crate::disks;
use crate::files::read_bounded;
use crate::run::LIB_DIRECTORY;
use crate::run::journal::{self, Journal};
use crate::run::step::{Check, Step};
use crate::run::unwritten;
use crate::summary::{Failure, OrFail};

/// The note of the journal that has the consents.
const NOTE: &str = "data-disks.consents";
/// The note of the journal that has the disks as they were when all were well.
const KNOWN: &str = "data-disks.known";
const NODE_FILE: &str = "/etc/nodezero/node.json";
const NODE_LIMIT: u64 = 1 << 20;

/// How long disks may take to appear, when the profile asks for more than there are: hard disks spin up one by one.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);

const WHAT: &str = "the data disks are not as the profile says; nothing is done to any of them";
const REMEDY: &str = "correct the profile's dataDisks, or the disks, and restart; `nodezero profile plan --inventory FILE` \
                      shows beforehand what a profile would do, from what `nodezero-firstboot inventory --json` prints";
const NOT_MOUNTED: &str = "it cannot be mounted";
const WITHOUT: &str =
    "the node goes on without it; check the disk and its cable, or put another one in its place, and restart";
const CHANGED: &str = "a data disk could not be prepared";
const RESTART: &str = "check the disk and its cable, and restart: the preparation goes on where it stopped";

/// The machine's inventory, with the node's name where it has a configuration, and its consents.
pub(crate) fn inventory() -> Inventory {
    let json = read_bounded(Path::new(NODE_FILE), NODE_LIMIT).unwrap_or_default();
    let node = Node::parse(&json).ok();
    let mut inventory = disks::inventory::take(node.as_ref().map(|node| &*node.name));
    // Without a journal nothing was done yet.
    let directory = Path::new(LIB_DIRECTORY);
    inventory.consents = journal::read_note(directory, NOTE).unwrap_or_default();
    inventory.known = journal::read_note(directory, KNOWN).unwrap_or_default();
    inventory
}

/// A data disk that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// The entry of the profile.
    pub(crate) entry: String,
    /// Serial number, or WWN where it tells none.
    pub(crate) serial: String,
    /// In bytes.
    pub(crate) size: u64,
    /// How it is attached.
    pub(crate) transport: Transport,
    /// Whether it rotates.
    pub(crate) rotational: bool,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
}

/// The node's data disks that are mounted now, for those who tell of them. Changes nothing.
///
/// # Errors
/// When the journal cannot be read.
pub(crate) fn prepared(node: &Node, journal: &Journal) -> anyhow::Result<Vec<Prepared>> {
    if node.data_disks.is_empty() {
        return Ok(Vec::new());
    }
    let plan = DataDisks::new(node.clone()).look(journal)?;
    let mounted = plan.targets().filter(|(planned, target)| mount::verify(&planned.disk, target).is_ok());
    let prepared = mounted.map(|(Planned { disk, .. }, target)| Prepared {
        entry: target.entry.clone(),
        serial: disk.serial.clone().or_else(|| disk.wwn.clone()).unwrap_or_default(),
        size: disk.size,
        transport: disk.transport,
        rotational: disk.rotational,
        mount: mount::mount_point(target),
    });
    Ok(prepared.collect())
}

/// The step.
#[derive(Debug)]
pub(crate) struct DataDisks {
    node: Node,
    plan: Option<Plan>,
    /// What the node goes on without.
    missing: Vec<Missing>,
}

impl DataDisks {
    /// For the data disks of this node.
    pub(crate) fn new(node: Node) -> Self {
        Self { node, plan: None, missing: Vec::new() }
    }

    /// Looks at the machine, and decides.
    fn look(&self, journal: &Journal) -> anyhow::Result<Plan> {
        let records: Records = journal.note(NOTE).context("reading the consents in the journal")?.unwrap_or_default();
        let mut inventory = disks::inventory::take(Some(&*self.node.name));
        inventory.known = journal.note(KNOWN).context("reading the known disks in the journal")?.unwrap_or_default();
        Ok(plan(&self.node, &inventory, &records))
    }

    /// Looks once more before the first write: a disk may have gone, or another one come, and then none is touched.
    fn look_again(&self, before: Plan, journal: &Journal) -> Result<Plan, Failure> {
        if self.node.data_disks.is_empty() {
            return Ok(before);
        }
        let now = self.look(journal).or_fail(WHAT, RESTART)?;
        if now.is_sound() && words(&now) == words(&before) {
            return Ok(now);
        }
        let why = format!("the disks changed between two looks; before: {}; now:\n{now}", words(&before));
        Err(Failure::new(WHAT, why, "leave the disks as they are, and restart"))
    }

    /// Waits a while for disks that the profile asks for and that have not appeared.
    fn wait_for_disks(&self) {
        let deadline = Instant::now() + PATIENCE;
        while is_short_of_disks(&self.node, &disks::inventory::take_facts()) && Instant::now() < deadline {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Step for DataDisks {
    fn name(&self) -> &'static str {
        "data-disks"
    }

    fn check(&mut self, journal: &Journal) -> Result<Check, Failure> {
        if self.node.data_disks.is_empty() {
            self.plan = Some(Plan { disks: Vec::new(), missing: Vec::new(), errors: Vec::new() });
            return Ok(Check::Done("the profile has no data disks".to_owned()));
        }
        self.wait_for_disks();
        let plan = self.look(journal).or_fail(WHAT, "check the journal's file, and restart")?;
        if !plan.is_sound() {
            return Err(Failure::new(WHAT, &plan, REMEDY));
        }
        let records: Records = journal.note(NOTE).or_fail(WHAT, REMEDY)?.unwrap_or_default();
        refuse_lost_consents(&plan, journal)?;
        self.missing.clone_from(&plan.missing);
        let line = words(&plan);
        let known: Known = journal.note(KNOWN).or_fail(WHAT, REMEDY)?.unwrap_or_default();
        let done = plan.missing.is_empty()
            && known == now_known(&plan)
            && plan.targets().all(|(planned, target)| {
                matches!(planned.verdict, Verdict::Keep(_))
                    && !owes_consent(&records, target)
                    && mount::verify(&planned.disk, target).is_ok()
            });
        self.plan = Some(plan);
        Ok(if done { Check::Done(line) } else { Check::Needed(line) })
    }

    fn apply(&mut self, journal: &mut Journal, progress: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let plan = self.plan.take().context("the step was not checked").or_fail(WHAT, "report this")?;
        let plan = self.look_again(plan, journal)?;
        for (planned, target) in plan.targets() {
            let path = &planned.disk.path;
            let done = carry_out(planned, target, journal, progress).with_context(|| path.clone());
            done.or_fail(CHANGED, RESTART)?;
        }
        let known: Known = journal.note(KNOWN).or_fail(WHAT, REMEDY)?.unwrap_or_default();
        self.missing.clone_from(&plan.missing);
        // What waits for a disk that does not come holds up what is ordered after it.
        plan.missing.iter().for_each(|missing| mount::give_up(&missing.disk.directory));
        let targets: Vec<&Target> = plan.targets().map(|(_, target)| target).collect();
        for (target, error) in mount::mount(&targets).or_fail(CHANGED, RESTART)? {
            let kept = plan.targets().any(|(planned, of)| of == target && matches!(planned.verdict, Verdict::Keep(_)));
            let failing = known.failing(&target.identity, &format!("{NOT_MOUNTED}: {error:#}"));
            match failing.filter(|_| kept) {
                Some(failing) => self.missing.push(failing),
                None => return Err(error).or_fail(CHANGED, RESTART),
            }
        }
        journal.set_note(KNOWN, &now_known(&plan)).map_err(unwritten)?;
        if !self.node.data_disks.is_empty() {
            longhorn::checks().iter().for_each(|line| progress(line));
        }
        Ok(())
    }

    fn verify(&mut self, journal: &Journal) -> Result<String, Failure> {
        if self.node.data_disks.is_empty() {
            return Ok("the profile has no data disks".to_owned());
        }
        let plan = self.look(journal).or_fail(CHANGED, RESTART)?;
        let mut line = String::new();
        for (planned, target) in plan.targets() {
            if self.missing.iter().any(|missing| missing.identity == target.identity.to_string()) {
                continue;
            }
            if !matches!(planned.verdict, Verdict::Keep(_)) {
                return Err(Failure::new(CHANGED, &plan, RESTART));
            }
            let mounted = mount::verify(&planned.disk, target).or_fail(CHANGED, RESTART)?;
            let comma = if line.is_empty() { "" } else { ", " };
            let _ = write!(line, "{comma}{mounted}");
        }
        let told = |missing: &&Missing| self.missing.iter().any(|known| known.identity == missing.identity);
        let more: Vec<Missing> = plan.missing.iter().filter(|missing| !told(missing)).cloned().collect();
        self.missing.extend(more);
        if line.is_empty() {
            line.push_str("none can be used");
        }
        if plan.is_sound() { Ok(line) } else { Err(Failure::new(CHANGED, &plan, RESTART)) }
    }

    fn warnings(&self) -> Vec<String> {
        self.missing.iter().map(|missing| format!("data disk {missing}; {WITHOUT}")).collect()
    }
}

/// The disks that are known once this plan is carried out: those of the plan, and those that it goes on without.
fn now_known(plan: &Plan) -> Known {
    let there = plan.targets().map(|(Planned { disk, .. }, target)| {
        let (entry, directory) = (target.entry.clone(), target.identity.directory());
        (target.identity.to_string(), KnownDisk { entry, directory, size: disk.size, model: disk.model.clone() })
    });
    let missing = plan.missing.iter().map(|missing| (missing.identity.clone(), missing.disk.clone()));
    Known(there.chain(missing).collect())
}

/// One line about a plan.
fn words(plan: &Plan) -> String {
    let disks = plan
        .targets()
        .map(|(planned, target)| format!("{} {} ({})", planned.verdict.word(), planned.disk.path, target.identity));
    let missing = plan.missing.iter().map(|missing| format!("go on without {}", missing.identity));
    let line = disks.chain(missing).collect::<Vec<_>>().join(", ");
    if line.is_empty() { "no disk is meant".to_owned() } else { line }
}

/// A journal that was damaged may have lost which consents were used: then none may be used again.
fn refuse_lost_consents(plan: &Plan, journal: &Journal) -> Result<(), Failure> {
    let wiped = plan.targets().find(|(planned, _)| matches!(planned.verdict, Verdict::Wipe { .. }));
    match (wiped, journal.broken()) {
        (Some((planned, _)), [.., broken]) => Err(Failure::new(
            WHAT,
            format!(
                "{} is to be wiped, and whether that was done before stood in a journal that was damaged ({broken})",
                planned.disk.describe()
            ),
            "look at what is on the disk; to have it wiped, remove that file from /var/lib/nodezero and restart",
        )),
        (Some(_) | None, _) => Ok(()),
    }
}

/// Whether a consent is still to be noted as used up.
fn owes_consent(records: &Records, target: &Target) -> bool {
    let known = records.0.get(&target.identity.to_string());
    let is_used = |number| known.is_some_and(|known| known.number >= number && known.stage == ConsentStage::Used);
    target.consent.is_some_and(|number| !is_used(number))
}

/// Does to one disk what the plan says.
fn carry_out(
    planned: &Planned,
    target: &Target,
    journal: &mut Journal,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let disk = &planned.disk;
    match &planned.verdict {
        Verdict::Keep(_) => {}
        Verdict::Prepare(_) | Verdict::Continue(..) | Verdict::Wipe { .. } => {
            progress(&format!("{}: {}", disk.describe(), planned.verdict.reason()));
        }
        Verdict::Refuse { .. } | Verdict::Failing(_) | Verdict::NotSelected { .. } => {
            anyhow::bail!("no verdict that is carried out")
        }
    }
    match &planned.verdict {
        Verdict::Prepare(_) => {
            // It is blank, so there is nothing that the consent was given for, and nothing it may ever meet.
            note_consent(journal, target, ConsentStage::Used)?;
            prepare::prepare(&mut Machine::lock(disk)?, disk, target, None)?;
        }
        Verdict::Continue(_, stage) => prepare::prepare(&mut Machine::lock(disk)?, disk, target, Some(*stage))?,
        Verdict::Wipe { .. } => {
            let mut machine = Machine::lock(disk)?;
            wipe_once(&mut machine, disk, target, journal)?;
            let blank = Disk { content: Content::Blank, ..disk.clone() };
            prepare::prepare(&mut machine, &blank, target, None)?;
        }
        Verdict::Keep(_) | Verdict::Refuse { .. } | Verdict::Failing(_) | Verdict::NotSelected { .. } => {}
    }
    note_consent(journal, target, ConsentStage::Used)?;
    if !matches!(planned.verdict, Verdict::Keep(_)) {
        let at = mount::mount_point(target);
        progress(&format!("{}: prepared for {} in {} ms", disk.path, at.display(), begin.elapsed().as_millis()));
    }
    Ok(())
}

/// Wipes a disk that is still what it was when the plan was made, and uses its consent up.
fn wipe_once(machine: &mut Machine<'_>, disk: &Disk, target: &Target, journal: &mut Journal) -> anyhow::Result<()> {
    let now = machine.examine();
    anyhow::ensure!(now == disk.content, "what is on it has changed since it was looked at: {now:?}");
    note_consent(journal, target, ConsentStage::Begun)?;
    wipe::wipe(machine, disk).context("wiping it")?;
    note_consent(journal, target, ConsentStage::Used)
}

/// Notes what became of the consent of a target, where it has one. It never goes back from used to begun.
fn note_consent(journal: &mut Journal, target: &Target, stage: ConsentStage) -> anyhow::Result<()> {
    let Some(number) = target.consent else { return Ok(()) };
    let mut records: Records = journal.note(NOTE)?.unwrap_or_default();
    if !owes_consent(&records, target) {
        return Ok(());
    }
    let since = jiff::Timestamp::now().strftime("%F %T UTC").to_string();
    records.0.insert(target.identity.to_string(), Consent { number, stage, since });
    journal.set_note(NOTE, &records).context("noting the consent to wipe in the journal")
}

#[cfg(test)]
mod consent_tests {
    use super::*;

    /// Only a consent of this number or a later one that is used up owes nothing.
    #[test]
    fn a_consent_is_owed_until_it_is_used() {
        let of = |consent| Target { consent, ..tests::target("Z1") };
        let known = |number, stage| {
            let consent = Consent { number, stage, since: String::new() };
            Records([("serial:Z1".to_owned(), consent)].into())
        };
        for (case, records, consent, owed) in [
            ("none given", Records::default(), None, false),
            ("fresh", Records::default(), Some(1), true),
            ("begun", known(1, ConsentStage::Begun), Some(1), true),
            ("used", known(1, ConsentStage::Used), Some(1), false),
            ("given once more", known(1, ConsentStage::Used), Some(2), true),
            ("lowered", known(2, ConsentStage::Used), Some(1), false),
        ] {
            assert_eq!(owes_consent(&records, &of(consent)), owed, "{case}");
        }
    }
}
