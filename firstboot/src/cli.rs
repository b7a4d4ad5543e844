//! The command line of the program: under which name it runs, and what it is to do.
//!
//! Parsed by hand: the words are few, and the program is part of every initrd.

use std::ffi::OsString;
use std::path::Path;

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// Be the first stage.
    Init,
    /// Answer the kernel's call for a module.
    Modprobe {
        /// Names and aliases.
        modules: Vec<String>,
    },
    /// Run a stage of Ignition.
    Ignition {
        /// What follows the command.
        arguments: Vec<OsString>,
    },
    /// Validate Ignition configs.
    IgnitionValidate {
        /// What follows the command.
        arguments: Vec<OsString>,
    },
    /// Be the first-boot service.
    Run,
    /// Keep the node registry.
    Registry,
    /// Say that this edge node is alive.
    Seen,
    /// Print what the service found.
    Status {
        /// As JSON.
        json: bool,
    },
    /// Print facts about the disks.
    Inventory {
        /// As JSON.
        json: bool,
    },
    /// Print the version.
    Version,
    /// Print how the program is used.
    Help,
}

/// Words that make no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}\n{USAGE}")]
pub(crate) struct UsageError(String);

/// How the program is used.
pub(crate) const USAGE: &str = "\
usage: nodezero-firstboot run                  make this node what its configuration says; the service of systemd
       nodezero-firstboot registry             keep the registry of nodes; the service of control nodes
       nodezero-firstboot seen                 tell the registry that this edge node is alive; what its timer runs
       nodezero-firstboot status [--json]      what the service found and did
       nodezero-firstboot inventory [--json]   this machine's disks; as JSON also what is on them
       nodezero-firstboot ignition FLAGS       run one stage of Ignition; -help lists the flags
       nodezero-firstboot --version | --help
Called as ignition it runs one stage, too. Called as ignition-validate FILE it validates an Ignition config; a FILE of -
is standard input. Called as init it is the first stage of the initrd, called as modprobe it loads modules for it.";

impl Invocation {
    /// Decides by the name that the program was called by, then by its arguments.
    ///
    /// # Errors
    /// When the arguments make no sense.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments.into_iter();
        let program = arguments.next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or_default().to_owned();
        let arguments: Vec<OsString> = arguments.collect();
        if name == "ignition" {
            return Ok(Self::Ignition { arguments });
        }
        if name == "ignition-validate" {
            return Ok(Self::IgnitionValidate { arguments });
        }
        if let Some((command, rest)) = arguments.split_first()
            && command == "ignition"
        {
            return Ok(Self::Ignition { arguments: rest.to_vec() });
        }
        if let Some((command, rest)) = arguments.split_first()
            && command == "ignition-validate"
        {
            return Ok(Self::IgnitionValidate { arguments: rest.to_vec() });
        }
        let words: Vec<String> = arguments.into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
        if name == "init" {
            return Ok(Self::Init);
        }
        if name == "modprobe" {
            let modules = words.into_iter().filter(|word| !word.starts_with('-')).collect();
            return Ok(Self::Modprobe { modules });
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["run"] => Ok(Self::Run),
            ["registry"] => Ok(Self::Registry),
            ["seen"] => Ok(Self::Seen),
            ["status"] => Ok(Self::Status { json: false }),
            ["status", "--json"] => Ok(Self::Status { json: true }),
            ["inventory"] => Ok(Self::Inventory { json: false }),
            ["inventory", "--json"] => Ok(Self::Inventory { json: true }),
            ["--version" | "-V"] => Ok(Self::Version),
            ["--help" | "-h"] => Ok(Self::Help),
            [] => Err(UsageError("a command is missing".to_owned())),
            _ => Err(UsageError(format!("{:?} is not understood", words.join(" ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_words_decide() {
        for (words, expected) in [
            ("/init quiet splash", Ok(Invocation::Init)),
            ("/sbin/modprobe -q -- fs-vfat", Ok(Invocation::Modprobe { modules: vec!["fs-vfat".into()] })),
            ("nodezero-firstboot run", Ok(Invocation::Run)),
            ("nodezero-firstboot registry", Ok(Invocation::Registry)),
            ("nodezero-firstboot seen", Ok(Invocation::Seen)),
            ("nodezero-firstboot status --json", Ok(Invocation::Status { json: true })),
            ("ignition -version", Ok(Invocation::Ignition { arguments: vec!["-version".into()] })),
            ("nodezero-firstboot ignition -version", Ok(Invocation::Ignition { arguments: vec!["-version".into()] })),
            ("/bin/ignition-validate -", Ok(Invocation::IgnitionValidate { arguments: vec!["-".into()] })),
            ("x ignition-validate -", Ok(Invocation::IgnitionValidate { arguments: vec!["-".into()] })),
            ("nodezero-firstboot inventory", Ok(Invocation::Inventory { json: false })),
            ("nodezero-firstboot --version", Ok(Invocation::Version)),
            ("nodezero-firstboot", Err(UsageError("a command is missing".into()))),
            ("nodezero-firstboot run fast", Err(UsageError("\"run fast\" is not understood".into()))),
        ] {
            assert_eq!(Invocation::parse(words.split(' ').map(OsString::from)), expected, "{words}");
        }
    }
}
