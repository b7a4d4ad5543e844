//! The file that says that, when and in which boot the system was provisioned: `/etc/.ignition-result.json`.
//!
//! It is written last, when all else is on the disk: where it is, the stage came to its end.

use anyhow::Context;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::Site;
use super::tree::Attributes;
use crate::ignition::stages::Fetched;

/// The file.
pub(super) const RESULT: &str = "/etc/.ignition-result.json";

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How large an earlier report may be, in bytes.
const LIMIT: u64 = 1 << 20;

/// The report.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    #[serde(rename = "provisioningBootID")]
    provisioning_boot_id: String,
    provisioning_date: String,
    user_config_provided: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_report: Option<Value>,
}

/// Writes the report; one that is there goes into it.
///
/// # Errors
/// When the boot's identity cannot be read, or the file cannot be written.
pub(super) fn write(site: &Site<'_>, fetched: &[Fetched]) -> anyhow::Result<()> {
    let boot_id = std::fs::read_to_string(BOOT_ID).with_context(|| format!("reading {BOOT_ID}"))?;
    let now = Timestamp::from_second(Timestamp::now().as_second()).context("the clock stands outside all dates")?;
    let report = Report {
        provisioning_boot_id: boot_id.trim().to_owned(),
        provisioning_date: now.to_string(),
        user_config_provided: fetched.iter().any(|config| config.kind == "user"),
        previous_report: previous(site),
    };
    let mut text = serde_json::to_vec_pretty(&report).context("writing JSON")?;
    text.push(b'\n');
    site.tree.write(&site.tree.resolve(RESULT)?, &text, Attributes::mode(0o600))
}

/// The report of an earlier run. One that cannot be read is no reason to fail.
fn previous(site: &Site<'_>) -> Option<Value> {
    let text = match site.tree.read(RESULT, LIMIT) {
        Ok(text) => text?,
        Err(error) => {
            site.log.warning(format_args!("the report of an earlier run is left out: {error:#}"));
            return None;
        }
    };
    site.log.warning("this system was provisioned before; a config is meant to be applied once");
    serde_json::from_slice(&text)
        .inspect_err(|error| site.log.warning(format_args!("the report of an earlier run is left out: {error}")))
        .ok()
}
