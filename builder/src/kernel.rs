//! The kernel of an image: found among the packages, its modules read.

use anyhow::{Context as _, Result, bail};
use rootfs::{FileId, Pack};

use crate::cache::Cache;
use crate::compose::Kernel;
use crate::glob::Dropped;
use crate::kmod::{self, ModuleInfo, Modules};
use crate::parallel;
use crate::unpack::{Kind, Unpacked};

/// The kernel's package, opened.
#[derive(Clone, Copy, Debug)]
pub struct Package<'a> {
    package: &'a Unpacked,
    pack: &'a Pack,
    version: &'a str,
}

impl<'a> Package<'a> {
    /// Finds the one kernel among the packages.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(packages: &'a [Unpacked], packs: &'a [Pack]) -> Result<Self> {
        let mut found = Vec::new();
        for (package, pack) in packages.iter().zip(packs) {
            for entry in &package.index.entries {
                if let Some(version) = entry.path.strip_prefix("boot/vmlinuz-") {
                    found.push(Self { package, pack, version });
                }
            }
        }
        match found[..] {
            [kernel] => Ok(kernel),
            [] => bail!("no package of the image ships /boot/vmlinuz-*: a platform needs a kernel"),
            _ => bail!(
                "more than one kernel: {}",
                found.iter().map(|kernel| kernel.version).collect::<Vec<_>>().join(", ")
            ),
        }
    }

    /// The cache key of the kernel's pack.
    #[must_use]
    pub fn key(&self) -> &'a str {
        &self.package.key
    }

    /// As `uname -r` prints it.
    #[must_use]
    pub fn version(&self) -> &'a str {
        self.version
    }

    /// Reads a file of the package.
    ///
    /// # Errors
    /// When it is not there.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let entry = self.package.index.entries.iter().find(|entry| entry.path == path);
        match entry.map(|entry| &entry.kind) {
            Some(Kind::File { file }) => Ok(self.pack.read_file(FileId::new(*file))?),
            _ => bail!("package {} has no file /{path}", self.package.pin.name),
        }
    }

    /// The kernel's image.
    ///
    /// # Errors
    /// When its pack is damaged.
    pub fn vmlinuz(&self) -> Result<Vec<u8>> {
        self.read(&format!("boot/vmlinuz-{}", self.version))
    }

    /// Reads what all modules say that the recipe keeps. That takes seconds, so it is cached with the pack.
    ///
    /// # Errors
    /// When a module is damaged.
    pub fn load(&self, cache: &Cache, dropped: &Dropped<'_>) -> Result<Kernel> {
        let dir = format!("usr/lib/modules/{}/", self.version);
        let name = format!("modinfo-1-{}", self.package.key);
        let infos: Vec<(String, ModuleInfo)> = match cache.read_sealed("parts", &name)? {
            Some(bytes) => serde_json::from_slice(&bytes).context("reading what the kernel's modules say")?,
            None => {
                let infos = self.read_infos(&dir)?;
                let bytes = serde_json::to_vec(&infos).context("writing what the kernel's modules say")?;
                cache.publish_sealed(&bytes, "parts", &name)?;
                infos
            }
        };
        let kept = infos.into_iter().filter(|(path, _)| !dropped.covers(&format!("{dir}{path}")));
        let text = |name: &str| -> Result<String> {
            String::from_utf8(self.read(&format!("{dir}{name}"))?).with_context(|| format!("/{dir}{name} is not text"))
        };
        Ok(Kernel {
            version: self.version.to_owned(),
            modules: Modules::new(kept, &text("modules.order")?),
            builtin: text("modules.builtin")?,
            builtin_modinfo: self.read(&format!("{dir}modules.builtin.modinfo"))?,
        })
    }

    fn read_infos(&self, dir: &str) -> Result<Vec<(String, ModuleInfo)>> {
        let modules: Vec<(&str, u32)> = self
            .package
            .index
            .entries
            .iter()
            .filter_map(|entry| match &entry.kind {
                Kind::File { file } => Some((entry.path.strip_prefix(dir)?, *file)),
                _ => None,
            })
            .filter(|(path, _)| kmod::module_name(path).is_some())
            .collect();
        parallel::map(&modules, |(path, file)| {
            let bytes = self.pack.read_file(FileId::new(*file))?;
            let info = kmod::read_info(path, &kmod::decompress(path, &bytes)?)?;
            Ok(((*path).to_owned(), info))
        })
        .into_iter()
        .collect()
    }

    /// One module, decompressed.
    ///
    /// # Errors
    /// When it is not there or damaged.
    pub fn module(&self, path: &str) -> Result<Vec<u8>> {
        let full = format!("usr/lib/modules/{}/{path}", self.version);
        Ok(kmod::decompress(path, &self.read(&full)?)?)
    }
}
