//! Ignition's stages, for specification 3.0 to 3.6, with the command line and environment of the reference
//! implementation.
//!
//! Each stage is a process of its own. The fetch stages find the config and put it into the cache file; the others
//! read it there, merge it over the system's own, and do their part. Exit codes are the reference's: 0, 1 when the
//! stage failed, 2 for a command line that makes no sense, 3 when the state file cannot be read. Unlike the reference,
//! a failed stage does not print the config, which may hold secrets.

pub(crate) mod config;
pub(crate) mod environment;
pub(crate) mod fetch;
pub(crate) mod flags;
pub(crate) mod log;
pub(crate) mod platform;
pub(crate) mod stages;
mod system;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::process::ExitCode;

use self::config::types::{Config, Ignition};
use self::environment::Environment;
use self::fetch::{Fetcher, NeedsNetwork};
use self::flags::{Flags, Request, StageName};
use self::log::Log;
use self::stages::{Stage, State};

const VERSION: &str = concat!("NodeZero Ignition ", env!("CARGO_PKG_VERSION"));

/// Runs one stage, as told by the command line without the program's name.
pub(crate) fn main(arguments: &[OsString]) -> ExitCode {
    match flags::parse(arguments) {
        Ok(Request::Run(flags)) => ExitCode::from(run(&flags, &Environment::read())),
        Ok(Request::Version) => {
            println!("{VERSION}");
            ExitCode::SUCCESS
        }
        Ok(Request::Help) => {
            eprintln!("{}", flags::USAGE);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}\n{}", flags::USAGE);
            ExitCode::from(2)
        }
    }
}

/// Runs one stage, and gives the exit code.
fn run(flags: &Flags, environment: &Environment) -> u8 {
    let log = if flags.log_to_stdout { Log::Stdout } else { Log::Kernel };
    log.info(VERSION);
    log.info(format!("Stage: {}", flags.stage.as_str()));
    let fail = |message: String, code: u8| {
        log.critical(&message);
        if log == Log::Kernel {
            eprintln!("ignition: {message}");
        }
        code
    };
    let mut state = match State::load(&flags.state_file) {
        Ok(state) => state,
        Err(error) => return fail(format!("{error:#}"), 3),
    };
    let outcome = run_stage(flags, environment, log, &mut state).and_then(|()| state.save(&flags.state_file));
    match outcome {
        Ok(()) => {
            log.info("Ignition finished successfully");
            0
        }
        Err(error) => fail(format!("Ignition failed: {}: {error:#}", flags.stage.as_str()), 1),
    }
}

fn run_stage(flags: &Flags, environment: &Environment, log: Log, state: &mut State) -> anyhow::Result<()> {
    let (base, of_system) = system::base(environment, &flags.platform, log)?;
    let user = match flags.stage {
        StageName::FetchOffline | StageName::Fetch => {
            // What an earlier fetch stage noted counts no more.
            state.fetched = of_system;
            let offline = flags.stage == StageName::FetchOffline;
            match stages::fetch::acquire(flags, environment, offline, log, state) {
                Err(error) if offline && NeedsNetwork::caused(&error) => {
                    log.info(format!("networking is needed: {error:#}"));
                    return stages::fetch::signal_neednet(&flags.neednet);
                }
                acquired => acquired?,
            }
        }
        StageName::Kargs | StageName::Disks | StageName::Mount | StageName::Files | StageName::Umount => {
            stages::fetch::cached(&flags.config_cache)?
        }
    };
    let settings = user.ignition.clone();
    let full = match base {
        Some(base) => config::merge(base, user),
        None => user,
    };
    let done = dispatch(flags, environment, log, state, &settings, &full);
    if done.is_ok() {
        log.info(format!("{} passed", flags.stage.as_str()));
    }
    done
}

fn dispatch(
    flags: &Flags,
    environment: &Environment,
    log: Log,
    state: &mut State,
    settings: &Ignition,
    config: &Config,
) -> anyhow::Result<()> {
    match flags.stage {
        StageName::FetchOffline if stages::fetch::config_needs_network(config) => {
            log.info("networking is needed for what the config refers to");
            return stages::fetch::signal_neednet(&flags.neednet);
        }
        StageName::FetchOffline | StageName::Fetch => return Ok(()),
        StageName::Kargs => return stages::kargs::run(log, config, &environment.cmdline),
        StageName::Disks | StageName::Mount | StageName::Files | StageName::Umount => {}
    }
    let fetcher = Fetcher::bare(&environment.network, false, log).bounded(flags.bound()).with(settings, None)?;
    let mut stage = Stage { root: &flags.root, fetcher: &fetcher, log, state };
    match flags.stage {
        StageName::Disks => stages::disks::run(&mut stage, config),
        StageName::Mount => stages::mount::mount(&mut stage, config),
        StageName::Files => stages::files::run(&mut stage, config),
        StageName::Umount => stages::mount::umount(&mut stage, config),
        StageName::FetchOffline | StageName::Fetch | StageName::Kargs => Ok(()),
    }
}
