//! `syslinux.cfg`, as <https://wiki.syslinux.org/wiki/index.php?title=Config> describes it. Only what an image that boots
//! unattended needs.

use std::fmt::Write;

use crate::error::{Error, Result};

/// Where the configuration lies in the ESP.
pub const CONFIG_PATH: &str = "syslinux.cfg";

/// The longest kernel command line that syslinux 6 passes on, in bytes.
const MAX_COMMAND_LINE: usize = 2047;

/// What the loader offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Speed of the first serial port in baud, where the loader shall use it besides the screen.
    pub serial_baud: Option<u32>,
    /// Wait for a key so long before the first entry boots, in tenths of a second. 0 boots at once.
    pub timeout: u32,
    /// The entries; the first is booted unless someone chooses otherwise.
    pub entries: Vec<Entry>,
}

/// One kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name at the prompt: letters, digits, `-`, `_` and `.`.
    pub label: String,
    /// Path of the kernel in the ESP.
    pub linux: String,
    /// Path of the initrd in the ESP.
    pub initrd: String,
    /// The kernel's command line.
    pub append: String,
}

impl Config {
    /// The file's text. An error where a value would not survive in it.
    pub fn render(&self) -> Result<String> {
        let Some(first) = self.entries.first() else {
            return Err(Error::Syslinux("a configuration without entries boots nothing".to_owned()));
        };
        let mut text = String::new();
        if let Some(baud) = self.serial_baud {
            // Must be the first line.
            writeln!(text, "SERIAL 0 {baud}").expect("a string takes all");
        }
        let (prompt, timeout) = (u8::from(self.timeout > 0), self.timeout);
        write!(text, "DEFAULT {}\nPROMPT {prompt}\nTIMEOUT {timeout}\n", first.label).expect("a string takes all");
        for entry in &self.entries {
            entry.check()?;
            let Entry { label, linux, initrd, append } = entry;
            write!(text, "\nLABEL {label}\n    LINUX {linux}\n    INITRD {initrd}\n    APPEND {append}\n")
                .expect("a string takes all");
        }
        Ok(text)
    }
}

impl Entry {
    fn check(&self) -> Result<()> {
        let plain = |text: &str, also: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
        };
        let wrong =
            |what: &str, value: &str| Err(Error::Syslinux(format!("{what} {value:?} cannot be in syslinux.cfg")));
        if !plain(&self.label, "-_.") {
            return wrong("label", &self.label);
        }
        for path in [&self.linux, &self.initrd] {
            // A comma would separate initrds.
            if !plain(path, "-_.+/") {
                return wrong("path", path);
            }
        }
        let is_line = self.append.chars().all(|c| (' '..='~').contains(&c));
        // The loader adds the paths of kernel and initrd as arguments.
        let length = self.append.len() + self.linux.len() + self.initrd.len() + " BOOT_IMAGE= initrd=".len();
        if !is_line || length > MAX_COMMAND_LINE {
            return wrong("command line", &self.append);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            label: "nodezero".to_owned(),
            linux: "/nodezero/vmlinuz".to_owned(),
            initrd: "/nodezero/initrd".to_owned(),
            append: "console=ttyS0,115200 quiet".to_owned(),
        }
    }

    #[test]
    fn renders_as_expected() {
        let config = Config { serial_baud: Some(115_200), timeout: 0, entries: vec![entry()] };
        let expected = "\
SERIAL 0 115200
DEFAULT nodezero
PROMPT 0
TIMEOUT 0

LABEL nodezero
    LINUX /nodezero/vmlinuz
    INITRD /nodezero/initrd
    APPEND console=ttyS0,115200 quiet
";
        assert_eq!(config.render().unwrap(), expected);
        let waiting = Config { serial_baud: None, timeout: 50, entries: vec![entry()] }.render().unwrap();
        assert!(waiting.starts_with("DEFAULT nodezero\nPROMPT 1\nTIMEOUT 50\n"), "{waiting}");
    }

    #[test]
    fn values_that_would_not_survive_are_refused() {
        type Change = fn(&mut Entry);
        let changes: [Change; 7] = [
            |entry| entry.label.clear(),
            |entry| entry.label = "two words".to_owned(),
            |entry| entry.linux = "/a b".to_owned(),
            |entry| entry.initrd = "/a,/b".to_owned(),
            |entry| entry.append = "a\nLABEL b".to_owned(),
            |entry| entry.append = "ä".to_owned(),
            |entry| entry.append = "x".repeat(2048),
        ];
        for (case, change) in changes.iter().enumerate() {
            let mut entry = entry();
            change(&mut entry);
            assert!(Config { serial_baud: None, timeout: 0, entries: vec![entry] }.render().is_err(), "case {case}");
        }
        assert!(Config { serial_baud: None, timeout: 0, entries: vec![] }.render().is_err());
    }
}
