//! The stage `kargs`.
//!
//! A unified kernel image carries its command line, measured and perhaps signed; nothing on the machine can change it.
//! So a config that asks for what is there already is fine, and any other is refused.
//!
//! Specification: `kernelArguments` in [configuration v3.5](https://coreos.github.io/ignition/configuration-v3_5/).

use std::path::Path;

use anyhow::Context;

use crate::ignition::config::types::{Config, KernelArguments};
use crate::ignition::log::Log;

/// Runs the stage; `cmdline` is where the kernel tells its command line.
///
/// # Errors
/// When the config asks for another command line than the kernel was started with.
pub(crate) fn run(log: Log, config: &Config, cmdline: &Path) -> anyhow::Result<()> {
    let Some(arguments) = config.kernel_arguments.as_ref() else { return Ok(()) };
    let text = std::fs::read_to_string(cmdline).with_context(|| format!("reading {}", cmdline.display()))?;
    let missing = differences(arguments, &text);
    anyhow::ensure!(
        missing.is_empty(),
        "kernelArguments cannot be honoured: the kernel command line is part of the image, which does not change on \
         the machine. Put it into the image's recipe and build the image anew, or take it out of the config. It asks \
         for: {}",
        missing.join(", ")
    );
    log.info("the kernel command line is as the config asks");
    Ok(())
}

/// What the command line would have to have changed.
fn differences(arguments: &KernelArguments, cmdline: &str) -> Vec<String> {
    let words: Vec<&str> = cmdline.split_ascii_whitespace().collect();
    let is_there = |argument: &str| {
        let wanted: Vec<&str> = argument.split_ascii_whitespace().collect();
        wanted.is_empty() || words.windows(wanted.len()).any(|window| window == wanted)
    };
    let missing = arguments.should_exist.iter().flatten().filter(|argument| !is_there(argument));
    // An empty one asks for nothing, so that it is not there either.
    let present = arguments
        .should_not_exist
        .iter()
        .flatten()
        .filter(|argument| !argument.trim().is_empty() && is_there(argument));
    missing
        .map(|argument| format!("{argument:?} to be there"))
        .chain(present.map(|argument| format!("{argument:?} to be gone")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignition::config::types::Ignition;

    #[test]
    fn what_is_there_already_is_fine() {
        let cmdline = tempfile::NamedTempFile::new().expect("tempfile");
        std::fs::write(cmdline.path(), "quiet console=ttyS0 a b\n").expect("written");
        for (exist, not, expected) in [
            (&[][..], &[][..], None),
            (&["quiet"], &["splash"], None),
            (&["console=ttyS0", "a b"], &["console=tty0", "b a"], None),
            (&["splash"], &[], Some("\"splash\" to be there")),
            (&["console"], &[], Some("\"console\" to be there")),
            (&["b a"], &[], Some("\"b a\" to be there")),
            (&[], &["quiet"], Some("\"quiet\" to be gone")),
            (&["x"], &["quiet", "y"], Some("\"x\" to be there, \"quiet\" to be gone")),
        ] {
            let list = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
            let arguments = KernelArguments { should_exist: list(exist), should_not_exist: list(not) };
            let mut config = Config::new(Ignition::default());
            config.kernel_arguments = Some(arguments);
            let outcome = run(Log::Stdout, &config, cmdline.path()).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(outcome, Ok(()), "{exist:?} {not:?}"),
                Some(asked) => {
                    let error = outcome.expect_err(asked);
                    assert!(error.ends_with(&format!("It asks for: {asked}")), "{error}");
                    assert!(error.contains("recipe"), "{error}");
                }
            }
        }
        run(Log::Stdout, &Config::default(), Path::new("/nonexistent")).expect("nothing is asked for");
    }
}
