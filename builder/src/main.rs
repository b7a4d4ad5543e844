//! The `nodezero` command: parses, calls, prints the error chain.

use std::process::ExitCode;

use clap::Parser as _;
use nodezero::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
