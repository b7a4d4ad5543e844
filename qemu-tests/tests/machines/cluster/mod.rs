//! The whole way: from images and profiles to a cluster with workers and an edge node, as the operator goes it, and
//! nobody logs in anywhere. Then what can go wrong on that way, and afterwards: each ends as it should, or in a message on
//! the console and in the status that names cause and remedy.
//!
//! One cluster serves all phases, as its first start is what takes longest; a control node and one other machine run at
//! a time. Needs Go. The environment may say more:
//!
//! - `NODEZERO_FLOW_PHASES` (`edge,outage`) chooses phases; `all` adds those that are not run every day, for CI's time is
//!   short; `NODEZERO_FLOW_UNTIL` ends it after a phase;
//! - `NODEZERO_FLOW_OUTAGE` is how many seconds the cluster's API is away when a worker joins;
//! - `NODEZERO_FLOW_LOGS=1` puts the logs of K3s and Tailscale on the consoles;
//! - `NODEZERO_FLOW_COMPONENTS="k3s=release tailscale=release"` chooses components.

mod faults;
mod flow;
mod site;

use std::env;

use anyhow::Result;
use qemu_tests::scenario;

use self::site::Site;

/// Does and asserts a phase.
type Act = fn(&mut Site<'_>) -> Result<()>;

/// What is done, in order, and whether every day. `control` and `worker` are what all others rest on; `full` rests on
/// `cuts`.
const PHASES: &[(&str, Act, bool)] = &[
    ("first-cuts", faults::first_cuts, false),
    ("control", flow::control, true),
    ("worker", flow::worker, true),
    ("pods", flow::pods, true),
    ("edge", flow::edge, true),
    ("refused", faults::refused, true),
    ("cuts", faults::cuts, false),
    ("outage", faults::outage, false),
    ("slow", faults::slow_network, false),
    ("stuck", faults::stuck, false),
    ("full", faults::full_state, false),
    ("power", flow::power, true),
    ("disk", faults::lost_disk, false),
    ("clock", faults::wrong_clock, false),
    ("reflash", faults::reflashed, true),
    ("reinstall", faults::reinstalled, true),
];

#[test]
fn from_images_to_a_cluster_and_through_its_faults() {
    // The control node is idle most of the time, so that the other machine's turn is enough for both.
    scenario("cluster", |s| {
        let mut site = Site::prepare(s)?;
        let outcome = run(&mut site);
        // What was measured is worth having, however it ended; how it ended is worth more.
        let written = site.write_figures();
        outcome.and(written)
    });
}

fn run(site: &mut Site<'_>) -> Result<()> {
    let until = env::var("NODEZERO_FLOW_UNTIL").unwrap_or_default();
    let chosen = env::var("NODEZERO_FLOW_PHASES").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|phase| !phase.is_empty()).collect();
    for (name, act, every_day) in PHASES {
        let is_chosen = match &chosen[..] {
            [] => *every_day,
            ["all"] => true,
            chosen => ["control", "worker"].contains(name) || chosen.contains(name),
        };
        if is_chosen {
            site.phase(name, *act)?;
        }
        if *name == until {
            break;
        }
    }
    site.power_off_all()
}
