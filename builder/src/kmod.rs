//! The kernel module indexes that `depmod` makes: dependencies, aliases, built-ins, as text and in kmod's binary form.
//!
//! A module's `.modinfo` section names its aliases, what it depends on and its soft dependencies; the indexes follow
//! from that alone. The text forms are those of modules.dep(5); the binary form is the trie of kmod's
//! `libkmod/libkmod-index.h`: a big-endian magic, a version, the root's offset, and nodes of prefix, children and
//! values, each offset carrying three flags. Symbol aliases (`modules.symbols`) are left out: only `modprobe
//! symbol:NAME` reads them, so that index is written empty.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::Read as _;

use serde::{Deserialize, Serialize};

/// The largest module accepted, decompressed: the kernel's own are below 20 MiB.
const MODULE_LIMIT: u64 = 128 << 20;

/// What a module says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Patterns of `modalias` strings that it drives, as in the module.
    pub aliases: Vec<String>,
    /// Names of modules that it needs.
    pub depends: Vec<String>,
    /// `softdep` lines: `pre: a b post: c`.
    pub softdeps: Vec<String>,
    /// `weakdep` lines.
    pub weakdeps: Vec<String>,
    /// Firmware files that it may ask for.
    pub firmware: Vec<String>,
}

/// A module that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a kernel module, or a damaged one.
    #[error("kernel module {path}: {what}")]
    Module {
        /// Its path.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A module needs one that is not there.
    #[error(
        "kernel module {module} needs {needs}, which the image lacks: a [[drop]] rule covers it, or a package is missing"
    )]
    Missing {
        /// Which module.
        module: String,
        /// What it needs.
        needs: String,
    },
}

/// The name of a module from its path: without directories and suffix, `-` as `_`.
#[must_use]
pub fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

/// Decompresses a module by its suffix.
///
/// # Errors
/// When it is damaged or too large.
pub fn decompress(path: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let wrong = |what: String| Error::Module { path: path.to_owned(), what };
    let mut out = Vec::with_capacity(bytes.len() * 4);
    let reader: Box<dyn std::io::Read> = match path.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(bytes)),
        Some("zst") => Box::new(zstd::Decoder::new(bytes).map_err(|error| wrong(error.to_string()))?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(bytes)),
        Some("ko") => Box::new(bytes),
        _ => return Err(wrong("unknown compression".into())),
    };
    reader.take(MODULE_LIMIT + 1).read_to_end(&mut out).map_err(|error| wrong(error.to_string()))?;
    if out.len() as u64 > MODULE_LIMIT {
        return Err(wrong(format!("larger than {MODULE_LIMIT} bytes")));
    }
    Ok(out)
}

/// Reads `.modinfo` of a decompressed module, an ELF64 little-endian object.
///
/// # Errors
/// When it is none.
pub fn read_info(path: &str, elf: &[u8]) -> Result<ModuleInfo, Error> {
    let section = modinfo(elf).ok_or_else(|| Error::Module {
        path: path.to_owned(),
        what: "not an ELF64 object with a .modinfo section".into(),
    })?;
    let mut info = ModuleInfo::default();
    for word in section.split(|byte| *byte == 0) {
        let Ok(word) = std::str::from_utf8(word) else { continue };
        let Some((key, value)) = word.split_once('=') else { continue };
        let value = value.to_owned();
        match key {
            "alias" => info.aliases.push(value),
            "depends" => {
                info.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")))
            }
            "softdep" => info.softdeps.push(value),
            "weakdep" => info.weakdeps.push(value),
            "firmware" => info.firmware.push(value),
            _ => {}
        }
    }
    Ok(info)
}

/// The bytes of `.modinfo`: ELF64 header, section headers and their string table (System V ABI, chapter 4).
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    let u32_at = |at: usize| usize::try_from(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?)).ok();
    let u64_at =
        |at: usize| usize::try_from(u64::from_le_bytes(elf.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok();
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry_size, count, names) = (u64_at(0x28)?, u16_at(0x3a)?, u16_at(0x3c)?, u16_at(0x3e)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry_size)?);
    let bytes = |at: usize| {
        let (offset, size) = (u64_at(at + 0x18)?, u64_at(at + 0x20)?);
        elf.get(offset..offset.checked_add(size)?)
    };
    let names = bytes(header(names)?)?;
    (0..count).find_map(|index| {
        let at = header(index)?;
        let name = names.get(u32_at(at)?..)?;
        name.starts_with(b".modinfo\0").then(|| bytes(at)).flatten()
    })
}

/// The modules of one kernel, in the order in which their order file or path sorts them.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    /// Paths below `usr/lib/modules/VERSION`, such as `kernel/fs/ext4/ext4.ko.xz`, with what they say.
    modules: BTreeMap<String, (String, ModuleInfo)>,
    order: BTreeMap<String, usize>,
}

impl Modules {
    /// Collects modules: `found` gives path below the version's directory and info; `order` is `modules.order`.
    #[must_use]
    pub fn new(found: impl IntoIterator<Item = (String, ModuleInfo)>, order: &str) -> Self {
        let order = order.lines().enumerate().filter_map(|(index, path)| Some((module_name(path)?, index))).collect();
        let modules = found.into_iter().filter_map(|(path, info)| Some((module_name(&path)?, (path, info)))).collect();
        Self { modules, order }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The path of a module.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<&str> {
        self.modules.get(name).map(|(path, _)| path.as_str())
    }

    /// Names and paths of all modules.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modules.iter().map(|(name, (path, _))| (name.as_str(), path.as_str()))
    }

    /// The modules that `name` needs, itself excluded, nearest first, each once.
    ///
    /// # Errors
    /// When one is missing.
    pub fn needs(&self, name: &str) -> Result<Vec<&str>, Error> {
        let mut seen = BTreeSet::new();
        let mut queue: VecDeque<&str> = VecDeque::from([name]);
        let mut needs = Vec::new();
        while let Some(module) = queue.pop_front() {
            let Some((_, info)) = self.modules.get(module) else { continue };
            for needed in &info.depends {
                let Some((key, _)) = self.modules.get_key_value(needed) else {
                    return Err(Error::Missing { module: module.to_owned(), needs: needed.clone() });
                };
                if seen.insert(key.as_str()) {
                    needs.push(key.as_str());
                    queue.push_back(key);
                }
            }
        }
        // A module that several need comes after all of them, as the loader goes from the end.
        Ok(self.ordered(name, &needs))
    }

    /// Dependencies before dependents when read from the end.
    fn ordered<'a>(&'a self, name: &str, needs: &[&'a str]) -> Vec<&'a str> {
        fn visit<'a>(modules: &'a Modules, name: &str, done: &mut BTreeSet<&'a str>, out: &mut Vec<&'a str>) {
            let Some((_, info)) = modules.modules.get(name) else { return };
            for needed in &info.depends {
                if let Some((key, _)) = modules.modules.get_key_value(needed)
                    && done.insert(key)
                {
                    visit(modules, key, done, out);
                    out.push(key);
                }
            }
        }
        let mut out = Vec::with_capacity(needs.len());
        visit(self, name, &mut BTreeSet::new(), &mut out);
        out.reverse();
        out
    }

    /// Keeps only `names` and what they need.
    ///
    /// # Errors
    /// When one that is needed is missing.
    pub fn closure(&self, names: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut keep = BTreeSet::new();
        for name in names {
            keep.extend(self.needs(&name)?.into_iter().map(str::to_owned));
            keep.insert(name);
        }
        let modules = self.modules.iter().filter(|(name, _)| keep.contains(*name));
        Ok(Self {
            modules: modules.map(|(name, module)| (name.clone(), module.clone())).collect(),
            order: self.order.clone(),
        })
    }

    /// All index files, by name, that stand beside the modules. `rename` maps a module's path to the one it has there.
    ///
    /// # Errors
    /// When a module needs one that is missing.
    pub fn indexes(
        &self,
        builtin: &str,
        builtin_modinfo: &[u8],
        rename: impl Fn(&str) -> String,
    ) -> Result<BTreeMap<&'static str, Vec<u8>>, Error> {
        let mut names: Vec<&String> = self.modules.keys().collect();
        names.sort_by_key(|name| (self.order.get(*name).copied().unwrap_or(usize::MAX), *name));
        let (mut dep, mut alias, mut softdep) = (String::new(), String::new(), String::new());
        let mut weakdep = String::new();
        let (mut dep_trie, mut alias_trie) = (Trie::default(), Trie::default());
        alias.push_str("# Aliases extracted from modules themselves.\n");
        softdep.push_str("# Soft dependencies extracted from modules themselves.\n");
        for (index, name) in names.iter().enumerate() {
            let priority = u32::try_from(index).unwrap_or(u32::MAX);
            let (path, info) = &self.modules[*name];
            let mut line = format!("{}:", rename(path));
            for needed in self.needs(name)? {
                let _ = write!(line, " {}", rename(&self.modules[needed].0));
            }
            let _ = writeln!(dep, "{line}");
            dep_trie.insert(name.as_bytes(), priority, line.as_bytes());
            for pattern in &info.aliases {
                let _ = writeln!(alias, "alias {pattern} {name}");
                alias_trie.insert(underscores(pattern).as_bytes(), priority, name.as_bytes());
            }
            for line in &info.softdeps {
                let _ = writeln!(softdep, "softdep {name} {line}");
            }
            for line in &info.weakdeps {
                let _ = writeln!(weakdep, "weakdep {name} {line}");
            }
        }
        let mut devname = String::from("# Device nodes to trigger on-demand module loading.\n");
        for name in &names {
            if let Some(node) = device_node(&self.modules[*name].1.aliases) {
                let _ = writeln!(devname, "{name} {node}");
            }
        }
        let mut builtin_trie = Trie::default();
        for name in builtin.lines().filter_map(module_name) {
            builtin_trie.insert(name.as_bytes(), 0, b"");
        }
        let mut builtin_aliases = Trie::default();
        for word in builtin_modinfo.split(|byte| *byte == 0) {
            let Some((name, value)) = std::str::from_utf8(word).ok().and_then(|word| word.split_once(".alias=")) else {
                continue;
            };
            builtin_aliases.insert(underscores(value).as_bytes(), 0, name.as_bytes());
        }
        Ok(BTreeMap::from([
            ("modules.dep", dep.into_bytes()),
            ("modules.dep.bin", dep_trie.encode()),
            ("modules.alias", alias.into_bytes()),
            ("modules.alias.bin", alias_trie.encode()),
            ("modules.devname", devname.into_bytes()),
            ("modules.softdep", softdep.into_bytes()),
            ("modules.weakdep", weakdep.into_bytes()),
            ("modules.symbols", b"# Aliases for symbols, used by symbol_request(): none are indexed.\n".to_vec()),
            ("modules.symbols.bin", Trie::default().encode()),
            ("modules.builtin.bin", builtin_trie.encode()),
            ("modules.builtin.alias.bin", builtin_aliases.encode()),
        ]))
    }
}

/// The device node whose first opening loads a module, from its aliases `devname:NAME` and `char-major-M-N` or
/// `block-major-M-N`: `net/tun c10:200`. systemd makes these nodes at boot.
fn device_node(aliases: &[String]) -> Option<String> {
    let name = aliases.iter().find_map(|alias| alias.strip_prefix("devname:"))?;
    let number = |prefix: &str, letter: char| {
        let alias = aliases.iter().find_map(|alias| alias.strip_prefix(prefix))?;
        let (major, minor) = alias.split_once('-')?;
        let (major, minor) = (major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?);
        Some(format!("{name} {letter}{major}:{minor}"))
    };
    number("char-major-", 'c').or_else(|| number("block-major-", 'b'))
}

/// kmod compares aliases with `-` as `_`, but within brackets.
fn underscores(pattern: &str) -> String {
    let mut inside = false;
    pattern
        .chars()
        .map(|c| {
            inside = match c {
                '[' => true,
                ']' => false,
                _ => inside,
            };
            if c == '-' && !inside { '_' } else { c }
        })
        .collect()
}

const MAGIC: u32 = 0xB007_F457;
const FORMAT_VERSION: u32 = 0x0002_0001;
const NODE_PREFIX: u32 = 0x8000_0000;
const NODE_VALUES: u32 = 0x4000_0000;
const NODE_CHILDREN: u32 = 0x2000_0000;

/// The keys of an index with their values, written as a trie.
#[derive(Default)]
struct Trie {
    entries: Vec<(Vec<u8>, u32, Vec<u8>)>,
}

impl Trie {
    fn insert(&mut self, key: &[u8], priority: u32, value: &[u8]) {
        // The format has 7-bit keys only; no module of Debian's has others.
        let key = key.iter().map(|byte| byte & 0x7f).collect();
        self.entries.push((key, priority, value.to_vec()));
    }

    fn encode(mut self) -> Vec<u8> {
        self.entries.sort();
        self.entries.dedup_by(|b, a| (&b.0, &b.2) == (&a.0, &a.2));
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(FORMAT_VERSION.to_be_bytes());
        out.extend([0; 4]);
        let root = write_node(&self.entries, 0, &mut out);
        out[8..12].copy_from_slice(&root.to_be_bytes());
        out
    }
}

/// Writes the node of `entries`, which agree in the first `depth` bytes of their keys: children first, then itself.
/// Returns its offset with its flags.
fn write_node(entries: &[(Vec<u8>, u32, Vec<u8>)], depth: usize, out: &mut Vec<u8>) -> u32 {
    let (Some((first, ..)), Some((last, ..))) = (entries.first(), entries.last()) else {
        return u32::try_from(out.len()).unwrap_or(u32::MAX);
    };
    // Sorted, so what the first and the last share, all share.
    let common = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
    let prefix = &first[depth..depth + common];
    let depth = depth + common;
    let ending = entries.iter().take_while(|(key, ..)| key.len() == depth).count();
    let (values, mut longer) = entries.split_at(ending);
    let mut children: Vec<(u8, u32)> = Vec::new();
    while let Some((key, ..)) = longer.first() {
        let byte = key[depth];
        let count = longer.iter().take_while(|(key, ..)| key[depth] == byte).count();
        let (same, rest) = longer.split_at(count);
        children.push((byte, write_node(same, depth + 1, out)));
        longer = rest;
    }
    let mut offset = u32::try_from(out.len()).expect("a module index is far below 256 MiB");
    if !prefix.is_empty() {
        offset |= NODE_PREFIX;
        out.extend(prefix);
        out.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        offset |= NODE_CHILDREN;
        out.extend([*first, *last]);
        let by_byte: BTreeMap<u8, u32> = children.iter().copied().collect();
        for byte in *first..=*last {
            out.extend(by_byte.get(&byte).copied().unwrap_or(0).to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= NODE_VALUES;
        out.extend(u32::try_from(values.len()).expect("few modules share an alias").to_be_bytes());
        let mut values: Vec<_> = values.iter().map(|(_, priority, value)| (priority, value)).collect();
        values.sort();
        for (priority, value) in values {
            out.extend(priority.to_be_bytes());
            out.extend(value);
            out.push(0);
        }
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(aliases: &[&str], depends: &[&str]) -> ModuleInfo {
        ModuleInfo {
            aliases: aliases.iter().map(ToString::to_string).collect(),
            depends: depends.iter().map(ToString::to_string).collect(),
            ..ModuleInfo::default()
        }
    }

    fn modules() -> Modules {
        Modules::new(
            [
                ("kernel/a.ko.xz".to_owned(), info(&["pci:v00001AF4d*"], &["b", "c"])),
                ("kernel/b.ko.xz".to_owned(), info(&[], &["c"])),
                ("kernel/c-x/c.ko.xz".to_owned(), info(&["c-alias", "devname:net/tun", "char-major-10-200"], &[])),
            ],
            "kernel/c-x/c.ko\nkernel/b.ko\nkernel/a.ko\n",
        )
    }

    #[test]
    fn needs_stand_so_that_loading_from_the_end_works() {
        assert_eq!(modules().needs("a").expect("complete"), ["b", "c"]);
        assert_eq!(modules().needs("c").expect("complete"), Vec::<&str>::new());
        let broken = Modules::new([("a.ko".to_owned(), info(&[], &["gone"]))], "");
        let error = broken.needs("a").expect_err("gone is missing").to_string();
        assert!(error.contains("module a needs gone"), "{error}");
    }

    #[test]
    fn indexes_say_what_depmod_says() {
        let indexes =
            modules().indexes("kernel/fs/ext4.ko\n", b"ext4.alias=fs-ext4\0", ToOwned::to_owned).expect("complete");
        let text = |name: &str| String::from_utf8(indexes[name].clone()).expect("text indexes are text");
        assert_eq!(
            text("modules.dep"),
            "kernel/c-x/c.ko.xz:\nkernel/b.ko.xz: kernel/c-x/c.ko.xz\n\
             kernel/a.ko.xz: kernel/b.ko.xz kernel/c-x/c.ko.xz\n"
        );
        assert!(text("modules.devname").ends_with("loading.\nc net/tun c10:200\n"), "{}", text("modules.devname"));
        assert!(text("modules.alias").contains("alias pci:v00001AF4d* a\n"), "patterns stay as they are");
        let binary = &indexes["modules.builtin.bin"];
        assert_eq!(binary[..8], [0xb0, 0x07, 0xf4, 0x57, 0, 2, 0, 1]);
        assert!(binary.windows(5).any(|window| window == b"ext4\0"), "the only key is one prefix");
    }
}
