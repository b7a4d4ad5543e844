//! The text of a debhelper section with its names replaced, so that one rule covers all packages.
//!
//! The same section differs between packages by names alone. These, and only these, are replaced:
//!
//! - a single-quoted unit name (`'ssh.service'`) by `@unit`;
//! - a bare word that ends in `.conf` and has no slash (arguments of systemd-tmpfiles and systemd-sysusers) by `@conf`;
//! - the word after `update-rc.d` or `--skip-systemd-native`, and what follows `/etc/init.d/` in a double-quoted word, by
//!   `@init`;
//! - what follows `/etc/apparmor.d/` or `/etc/apparmor.d/local/` in a double-quoted word by `@profile`;
//! - the value of `NAME=` in single quotes by `@name`;
//! - the arguments of `dpkg-maintscript-helper VERB ... -- "$@"` by one `@args`, and a run of such equal lines by one.
//!
//! A run of equal placeholders separated by single spaces counts as one. A name consists of ASCII letters, digits and
//! `@ . _ + : ~ -`, with a slash or a backslash only in arguments of `dpkg-maintscript-helper`; anything else stays as it
//! is, and then no rule matches. The tool's version in the first line is not part of the text.
//! [`Coverage::Snippets`](super::Coverage::Snippets) carries the replaced names, for whoever compares them with what an
//! image enables.

use std::collections::BTreeSet;

/// Characters of a package's, unit's or file's name that normalisation may replace, beside ASCII letters and digits.
const NAME_PUNCTUATION: &[u8] = b"@._+:~-";

/// Suffixes by which a single-quoted word is known as a systemd unit, `systemd.unit(5)`.
const UNIT_SUFFIXES: [&str; 8] =
    [".service", ".socket", ".target", ".timer", ".slice", ".mount", ".automount", ".path"];

/// The normalised text of a section, each line ended by a newline, and the names that it lost.
pub(super) fn normalize(lines: &[&str]) -> (String, BTreeSet<String>) {
    let mut names = BTreeSet::new();
    let mut normal: Vec<String> = Vec::new();
    for line in lines {
        match normalize_helper(line, &mut names) {
            Some(line) if normal.last() == Some(&line) => {}
            Some(line) => normal.push(line),
            None => normal.push(normalize_line(line, &mut names)),
        }
    }
    (normal.iter().flat_map(|line| [line.as_str(), "\n"]).collect(), names)
}

/// A call of dpkg-maintscript-helper with its arguments replaced; nothing when the line is something else.
fn normalize_helper(line: &str, names: &mut BTreeSet<String>) -> Option<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let ["dpkg-maintscript-helper", verb, arguments @ .., "--", "\"$@\""] = words.as_slice() else {
        return None;
    };
    let is_argument =
        |word: &&str| !word.is_empty() && word.bytes().all(|byte| is_name_byte(byte) || byte == b'/' || byte == b'\\');
    if !arguments.iter().all(is_argument) {
        return None;
    }
    names.extend(arguments.iter().map(|&word| word.to_owned()));
    Some(format!("dpkg-maintscript-helper {verb} @args -- \"$@\""))
}

/// A line with its names replaced.
fn normalize_line(line: &str, names: &mut BTreeSet<String>) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut previous = "";
    for word in line.split(' ') {
        let normal = match normalize_word(word, previous) {
            Some((normal, name)) => {
                names.insert(name.to_owned());
                normal
            }
            None => word.to_owned(),
        };
        let repeats = matches!(normal.as_str(), "@unit" | "@conf") && words.last() == Some(&normal);
        if !repeats {
            words.push(normal);
        }
        previous = word;
    }
    words.join(" ")
}

/// A word with the name in it replaced, and that name; nothing when it has none.
fn normalize_word<'a>(word: &'a str, previous: &str) -> Option<(String, &'a str)> {
    let (word, end) = match word.strip_suffix(';') {
        Some(word) => (word, ";"),
        None => (word, ""),
    };
    if let Some(name) = word.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        let is_unit = is_name(name) && UNIT_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        return is_unit.then(|| (format!("@unit{end}"), name));
    }
    if let Some(name) = word.strip_prefix("NAME='").and_then(|rest| rest.strip_suffix('\'')) {
        return is_name(name).then(|| (format!("NAME=@name{end}"), name));
    }
    if matches!(previous.trim_start(), "update-rc.d" | "--skip-systemd-native") && is_name(word) {
        return Some((format!("@init{end}"), word));
    }
    if word.ends_with(".conf") && is_name(word) {
        return Some((format!("@conf{end}"), word));
    }
    let directories =
        [("/etc/init.d/", "@init"), ("/etc/apparmor.d/local/", "@profile"), ("/etc/apparmor.d/", "@profile")];
    directories.iter().find_map(|(directory, placeholder)| {
        let start = word.find(&format!("\"{directory}"))? + 1 + directory.len();
        let name = word[start..].strip_suffix('"')?;
        is_name(name).then(|| (format!("{}{placeholder}\"{end}", &word[..start]), name))
    })
}

fn is_name(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(is_name_byte)
}

/// Whether a name may hold this byte.
pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || NAME_PUNCTUATION.contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_where_the_documentation_says() {
        let cases = [
            ("\tdeb enable 'a.service' >/dev/null", "\tdeb enable @unit >/dev/null"),
            ("start 'a.timer' 'b.service' x", "start @unit x"),
            ("if deb 'a.service'; then", "if deb @unit; then"),
            ("echo 'a.txt'", "echo 'a.txt'"),
            ("echo 'a b.service'", "echo 'a b.service'"),
            ("echo 'a$(reboot).service'", "echo 'a$(reboot).service'"),
            ("echo \"a.service\"", "echo \"a.service\""),
            ("tool --create a.conf b.conf || true", "tool --create @conf || true"),
            ("tool --create /etc/a.conf", "tool --create /etc/a.conf"),
            ("\tupdate-rc.d ssh defaults", "\tupdate-rc.d @init defaults"),
            ("invoke-rc.d --skip-systemd-native ssh $x", "invoke-rc.d --skip-systemd-native @init $x"),
            ("if [ -x \"/etc/init.d/ssh\" ]; then", "if [ -x \"/etc/init.d/@init\" ]; then"),
            ("if [ -x \"/etc/init.d/../ssh\" ]; then", "if [ -x \"/etc/init.d/../ssh\" ]; then"),
            ("P=\"/etc/apparmor.d/local/usr.bin.x\"", "P=\"/etc/apparmor.d/local/@profile\""),
            ("NAME='ssh' ENABLE='yes'", "NAME=@name ENABLE='yes'"),
            (
                "dpkg-maintscript-helper rm_conffile /etc/a 1:7\\~ -- \"$@\"",
                "dpkg-maintscript-helper rm_conffile @args -- \"$@\"",
            ),
            (
                "dpkg-maintscript-helper rm_conffile /etc/a $x -- \"$@\"",
                "dpkg-maintscript-helper rm_conffile /etc/a $x -- \"$@\"",
            ),
            (
                "dpkg-maintscript-helper rm_conffile /etc/a -- \"$@\"; rm x",
                "dpkg-maintscript-helper rm_conffile /etc/a -- \"$@\"; rm x",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(normalize(&[line]).0, format!("{expected}\n"), "{line}");
        }
        let helper =
            ["dpkg-maintscript-helper rm_conffile /a -- \"$@\"", "dpkg-maintscript-helper rm_conffile /b -- \"$@\""];
        assert_eq!(
            normalize(&helper).0,
            "dpkg-maintscript-helper rm_conffile @args -- \"$@\"\n",
            "a run counts as one"
        );
    }
}
