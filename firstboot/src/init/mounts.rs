//! The kernel's own file systems, and moving them into the new root.

use std::fs;
use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::summary::{Failure, OrFail};

/// A file system without a device.
#[derive(Clone, Copy, Debug)]
struct ApiMount {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    options: &'static std::ffi::CStr,
}

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In the order in which they are mounted, with the options that systemd would take.
const API_MOUNTS: [ApiMount; 4] = [
    ApiMount { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, options: c"mode=0755" },
    ApiMount { kind: "proc", at: "/proc", flags: SAFE, options: c"" },
    ApiMount { kind: "sysfs", at: "/sys", flags: SAFE, options: c"" },
    ApiMount {
        kind: "tmpfs",
        at: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        options: c"mode=0755,size=20%,nr_inodes=800k",
    },
];

/// Mounts `/dev`, `/proc`, `/sys` and `/run`, and takes `/dev/console` as standard streams.
///
/// # Errors
/// When one cannot be mounted.
pub(crate) fn mount_api() -> Result<(), Failure> {
    for api in API_MOUNTS {
        let mounted = fs::create_dir_all(api.at).map_err(anyhow::Error::from).and_then(|()| {
            mount(api.kind, api.at, api.kind, api.flags, api.options).with_context(|| format!("mounting {}", api.at))
        });
        mounted.or_fail("the kernel's file systems cannot be mounted", "report this with the version of the image")?;
    }
    if let Ok(console) = fs::OpenOptions::new().read(true).write(true).open("/dev/console") {
        // Without a console the streams stay as they are; messages go to the consoles by name anyway.
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
    Ok(())
}

/// Moves the API file systems into `root`, and leaves links where they were, so that their usual paths go on to work
/// both here and for programs that run with `root` as their root directory.
///
/// # Errors
/// When `root` has no directory for one.
pub(crate) fn move_api_into(root: &Path) -> Result<(), Failure> {
    for api in API_MOUNTS {
        let to = root.join(api.at.trim_start_matches('/'));
        let moved = mount_move(api.at, &to)
            .with_context(|| format!("moving {} to {}", api.at, to.display()))
            .and_then(|()| fs::remove_dir_all(api.at).with_context(|| format!("removing {}", api.at)))
            .and_then(|()| std::os::unix::fs::symlink(&to, api.at).with_context(|| format!("linking {}", api.at)));
        moved.or_fail(
            "the root file system lacks what a system needs",
            "the image is faulty: report this with its version",
        )?;
    }
    Ok(())
}
