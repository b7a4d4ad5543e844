//! The initrd: the first-boot binary as `/init`, and the modules that it needs to find its own disk.
//!
//! Modules lie in it uncompressed, since the whole archive is compressed; programs lie in the verified root.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use rootfs::{Node, Tree};

use crate::compose::Kernel;
use crate::glob::{Glob, matches_name};
use crate::kernel::Package;
use crate::kmod::Modules;
use crate::recipe::Boot;

/// Chooses the modules of the initrd: what the platform names, and what those need.
///
/// # Errors
/// When an entry names no module at all, loadable or built in.
pub fn choose_modules(boot: &Boot, kernel: &Kernel) -> Result<Modules> {
    let builtin: BTreeSet<String> = kernel.builtin.lines().filter_map(crate::kmod::module_name).collect();
    let mut chosen = BTreeSet::new();
    for entry in &boot.modules {
        let mut found = false;
        if entry.name.contains('/') {
            let glob = Glob::new(&entry.name).map_err(anyhow::Error::msg).with_context(|| entry.origin.to_string())?;
            for (name, _) in kernel.modules.iter().filter(|(_, path)| glob.covers(path.as_bytes())) {
                found = true;
                chosen.insert(name.to_owned());
            }
            found |= kernel.builtin.lines().any(|path| glob.covers(path.as_bytes()));
        } else {
            let pattern = entry.name.replace('-', "_");
            let matching = kernel.modules.iter().filter(|(name, _)| matches_name(pattern.as_bytes(), name.as_bytes()));
            for (name, _) in matching {
                found = true;
                chosen.insert(name.to_owned());
            }
            found |= builtin.iter().any(|name| matches_name(pattern.as_bytes(), name.as_bytes()));
        }
        if !found {
            bail!("{}: kernel {} has no module {}", entry.origin, kernel.version, entry.name);
        }
    }
    for name in &boot.load {
        let name = name.replace('-', "_");
        if kernel.modules.path(&name).is_some() {
            chosen.insert(name);
        } else if !builtin.contains(&name) {
            bail!("the initrd is to load {name}, which kernel {} does not have", kernel.version);
        }
    }
    Ok(kernel.modules.closure(chosen)?)
}

/// The initrd's tree.
///
/// # Errors
/// When a module cannot be read.
pub fn tree(boot: &Boot, kernel: &Kernel, package: &Package<'_>, modules: &Modules, firstboot: &[u8]) -> Result<Tree> {
    let mut tree = Tree::new();
    let dir = format!("usr/lib/modules/{}", kernel.version);
    for name in ["dev", "proc", "sys", "run", "sysroot", "etc"] {
        tree.insert(name, Node::directory(0o755))?;
    }
    // The kernel opens its first console before anything is mounted.
    let console =
        Node::Device { meta: rootfs::Meta::new(0o600), kind: rootfs::tree::DeviceKind::Character, major: 5, minor: 1 };
    tree.insert("dev/console", console)?;
    tree.insert("init", Node::inline(0o755, firstboot))?;
    for (_, path) in modules.iter() {
        let bytes = package.module(path)?;
        tree.insert_with_parents(format!("{dir}/{}", uncompressed(path)), Node::inline(0o644, bytes))?;
    }
    for (name, bytes) in
        modules.indexes(&kernel.builtin, &kernel.builtin_modinfo, |path| uncompressed(path).to_owned())?
    {
        if !name.ends_with(".bin") {
            tree.insert_with_parents(format!("{dir}/{name}"), Node::inline(0o644, bytes))?;
        }
    }
    tree.insert(format!("{dir}/modules.builtin"), Node::inline(0o644, kernel.builtin.as_bytes()))?;
    let load: String = boot.load.iter().map(|name| format!("{name}\n")).collect();
    tree.insert_with_parents("etc/nodezero/modules-load", Node::inline(0o644, load.into_bytes()))?;
    Ok(tree)
}

fn uncompressed(path: &str) -> &str {
    path.strip_suffix(".xz").or_else(|| path.strip_suffix(".zst")).unwrap_or(path)
}
