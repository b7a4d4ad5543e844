//! The demo's table: a row for each step, a column for each machine, and below it what each machine says. It is drawn
//! over and over on a terminal; elsewhere there is a line for each change.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::follow::{Follower, Stage, clock};

/// Rows and columns of a terminal that does not say how many it has.
const SIZE: (usize, usize) = (24, 80);

/// Where the demo is shown.
pub(super) struct Screen {
    terminal: bool,
    /// Lines on the terminal that are drawn over.
    drawn: usize,
}

impl Screen {
    /// Standard output.
    #[must_use]
    pub(super) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0 }
    }

    /// Draws how far machines are, each with the time since it was switched on. `moved` are those that are elsewhere
    /// than when they were drawn last.
    ///
    /// # Errors
    /// When nothing can be written.
    pub(super) fn draw(&mut self, machines: &[(&Follower, Duration)], moved: &[usize]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if !self.terminal {
            moved.iter().try_for_each(|index| {
                let (machine, now) = machines[*index];
                writeln!(out, "{}", machine.line(now))
            })?;
            return out.flush();
        }
        let (rows, columns) = match rustix::termios::tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (usize::from(size.ws_row), usize::from(size.ws_col)),
            _ => SIZE,
        };
        let lines = lines(machines, rows);
        self.clear(&mut out)?;
        for line in &lines {
            // A line that wraps would be two, and the next drawing would begin too low.
            writeln!(out, "{}", line.chars().take(columns).collect::<String>())?;
        }
        self.drawn = lines.len();
        out.flush()
    }

    /// Says lines that stay, above the table.
    ///
    /// # Errors
    /// When nothing can be written.
    pub(super) fn say<T: AsRef<str>>(&mut self, lines: &[T]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        self.clear(&mut out)?;
        lines.iter().try_for_each(|line| writeln!(out, "{}", line.as_ref()))?;
        out.flush()
    }

    fn clear(&mut self, out: &mut impl io::Write) -> io::Result<()> {
        match std::mem::take(&mut self.drawn) {
            0 => Ok(()),
            drawn => write!(out, "\x1b[{drawn}A\r\x1b[J"),
        }
    }
}

/// The table and the lines below it; these alone where the table is higher than `rows`.
fn lines(machines: &[(&Follower, Duration)], rows: usize) -> Vec<String> {
    let said: Vec<String> = machines.iter().map(|(machine, now)| machine.line(*now)).collect();
    let table = table(machines);
    if table.len() + said.len() >= rows {
        return said;
    }
    table.into_iter().chain(said).collect()
}

/// The steps of all machines. One that only some machines have stands where it comes for them.
fn table(machines: &[(&Follower, Duration)]) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    for (machine, _) in machines {
        let mut place = 0;
        for step in &machine.steps {
            match names.iter().position(|name| *name == step.name) {
                Some(found) => place = found + 1,
                None => {
                    names.insert(place, &step.name);
                    place += 1;
                }
            }
        }
    }
    let row = |name: &str, cell: &dyn Fn(&Follower, Duration) -> String| {
        let cells = machines.iter().map(|(machine, now)| format!("  {:>12}", cell(machine, *now)));
        format!("{name:<14}{}", cells.collect::<String>()).trim_end().to_owned()
    };
    let mut lines = vec![row("", &|machine, _| machine.name.clone())];
    lines.extend(names.iter().map(|name| row(name, &|machine, now| cell(machine, name, now))));
    lines.push(row("ready", &|machine, _| match machine.stage {
        Stage::Ready(at) => clock(at),
        Stage::Starting | Stage::Step { .. } | Stage::Failed { .. } | Stage::Off => String::new(),
    }));
    lines.push(String::new());
    lines
}

/// When a step was done, or how it is.
fn cell(machine: &Follower, name: &str, now: Duration) -> String {
    let Some(step) = machine.steps.iter().find(|step| step.name == name) else {
        return match &machine.stage {
            Stage::Failed { step: Some(step), .. } if step == name => "fails".to_owned(),
            _ => String::new(),
        };
    };
    match (step.done, &machine.stage) {
        (Some(done), _) => clock(done),
        (None, Stage::Failed { .. }) => "fails".to_owned(),
        (None, Stage::Ready(_) | Stage::Off) => "-".to_owned(),
        (None, Stage::Starting | Stage::Step { .. }) => format!("… {}", clock(now)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::follow::tests::followed;
    use super::*;

    #[test]
    fn the_table_has_all_steps_in_order() {
        let control = followed(
            "control-1",
            &[
                "nodezero: step identity: set (1 ms)",
                "nodezero: step mesh: joined (1 ms)",
                "nodezero: step cluster: starting",
            ],
        );
        let worker = followed(
            "worker-1",
            &[
                "nodezero: step identity: set (1 ms)",
                "nodezero: step data-disks: prepared (1 ms)",
                "nodezero: step mesh: joining",
                "NodeZero cannot finish step mesh: no server",
            ],
        );
        let now = Duration::from_secs(75);
        let machines = [(&control, now), (&worker, now)];
        let expected = [
            "                   control-1      worker-1",
            "identity                0:01          0:01",
            "data-disks                            0:02",
            "mesh                    0:02         fails",
            "cluster               … 1:15",
            "ready",
            "",
            "control-1      1:15  cluster: starting",
            "worker-1       1:15  NodeZero cannot finish step mesh: no server",
        ];
        assert_eq!(lines(&machines, 24), expected);
        assert_eq!(lines(&machines, 9), expected[7..], "a table that does not fit is left out");
    }

    #[test]
    fn who_is_ready_has_a_time() {
        let machine = followed("control-1", &["nodezero: step identity: set (1 ms)", "nodezero: ready"]);
        let shown = lines(&[(&machine, Duration::from_secs(99))], 24);
        assert_eq!(shown[2], "ready                   0:02");
        assert_eq!(shown.last().map(String::as_str), Some("control-1      0:02  ready"));
    }
}
