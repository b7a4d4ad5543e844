//! What the stages take from the world around them: environment variables, and places that have one name on every
//! machine. Read once, so that tests can give other ones.

use std::env;
use std::fmt;
use std::path::PathBuf;

use crate::boot::{CONFIG_FILE, RUN_DIRECTORY};

/// Where configs and settings come from.
#[derive(Clone, Debug)]
pub(crate) struct Environment {
    /// Directories with `base.d`, `base.platform.d` and `user.ign`; a file in an earlier one hides its namesake in a
    /// later one. `IGNITION_SYSTEM_RUNTIME_CONFIG_DIR`, `IGNITION_SYSTEM_LOCAL_CONFIG_DIR` and
    /// `IGNITION_SYSTEM_CONFIG_DIR` say where they are.
    pub(crate) system_config: Vec<PathBuf>,
    /// `IGNITION_CONFIG_FILE`: the config of platform `file`.
    pub(crate) config_file: PathBuf,
    /// The config that the first stage found.
    pub(crate) handed_on: PathBuf,
    /// The kernel's command line.
    pub(crate) cmdline: PathBuf,
    /// Where sysfs is mounted.
    pub(crate) sys: PathBuf,
    /// What fetching depends on.
    pub(crate) network: Network,
}

/// What fetching depends on. A proxy's URL may hold a password, and is not shown.
#[derive(Clone)]
pub(crate) struct Network {
    /// `HTTP_PROXY`; like the other two also in lower case.
    pub(crate) http_proxy: Option<String>,
    /// `HTTPS_PROXY`.
    pub(crate) https_proxy: Option<String>,
    /// `NO_PROXY`, separated by commas.
    pub(crate) no_proxy: Option<String>,
    /// `SSL_CERT_FILE`: the system's certificate authorities, in PEM.
    pub(crate) authorities: PathBuf,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("authorities", &self.authorities).finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads the environment of this process.
    pub(crate) fn read() -> Self {
        let path = |name: &str, default: &str| {
            env::var_os(name).filter(|value| !value.is_empty()).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self {
            system_config: vec![
                path("IGNITION_SYSTEM_RUNTIME_CONFIG_DIR", "/run/ignition"),
                path("IGNITION_SYSTEM_LOCAL_CONFIG_DIR", "/etc/ignition"),
                path("IGNITION_SYSTEM_CONFIG_DIR", "/usr/lib/ignition"),
            ],
            config_file: path("IGNITION_CONFIG_FILE", "config.ign"),
            handed_on: [RUN_DIRECTORY, CONFIG_FILE].iter().collect(),
            cmdline: "/proc/cmdline".into(),
            sys: "/sys".into(),
            network: Network {
                http_proxy: either_case("HTTP_PROXY"),
                https_proxy: either_case("HTTPS_PROXY"),
                no_proxy: either_case("NO_PROXY"),
                authorities: path("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"),
            },
        }
    }
}

fn either_case(name: &str) -> Option<String> {
    [name.to_owned(), name.to_lowercase()].iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}
