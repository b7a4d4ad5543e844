//! The whole way: from images and profiles to a cluster with workers and an edge node, as the operator goes it, and
//! nobody logs in anywhere. Then what can go wrong on that way, and afterwards: each ends as it should, or in a message on
//! the console and in the status that names cause and remedy.
//!
//! One cluster serves all phases, as its first start is what takes longest; a control node and one other machine run at
//! a time. Needs Go. The environment may say more:
//!
//! - `NODEZERO_FLOW_UNTIL` ends it after a phase, `NODEZERO_FLOW_PHASES` (`edge,outage`) leaves out others; what a phase
//!   rests on cannot be left out;
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

/// What is done, in order. The first two are what all others rest on.
const PHASES: &[(&str, Act)] = &[
    ("control", flow::control),
    ("worker", flow::worker),
    ("pods", flow::pods),
    ("edge", flow::edge),
    ("refused", faults::refused),
    ("cuts", faults::cuts),
    ("outage", faults::outage),
    ("slow", faults::slow_network),
    ("stuck", faults::stuck),
    ("full", faults::full_state),
    ("power", flow::power),
    ("clock", faults::wrong_clock),
    ("reflash", faults::reflashed),
    ("reinstall", faults::reinstalled),
];

#[test]
fn from_images_to_a_cluster_and_through_its_faults() {
    // The control node is idle most of the time, so that the other machine's turn is enough for both.
    scenario("cluster", |s| {
        let mut site = Site::prepare(s)?;
        let outcome = run(&mut site);
        // What was measured is worth having, however it ended.
        site.write_timings()?;
        outcome
    });
}

fn run(site: &mut Site<'_>) -> Result<()> {
    let until = env::var("NODEZERO_FLOW_UNTIL").unwrap_or_default();
    let chosen = env::var("NODEZERO_FLOW_PHASES").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|phase| !phase.is_empty()).collect();
    for (index, (name, act)) in PHASES.iter().enumerate() {
        if index < 2 || chosen.is_empty() || chosen.contains(name) {
            site.phase(name, *act)?;
        }
        if *name == until {
            break;
        }
    }
    site.power_off_all()
}
