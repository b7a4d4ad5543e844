//! Paths as texts: absolute and without detours, or refused.

/// Checks a path that must be given.
pub(super) fn validate(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("path is missing".to_owned());
    }
    if !path.starts_with('/') {
        return Err(format!("{path:?} is not absolute"));
    }
    let clean = clean(path);
    if clean != path {
        return Err(format!("{path:?} is not in its shortest form, {clean:?}"));
    }
    Ok(())
}

/// The shortest path that means the same where there are no links: no empty, `.` or needless `..` component.
pub(super) fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." if components.last().is_some_and(|last| *last != "..") => _ = components.pop(),
            ".." if absolute => {}
            component => components.push(component),
        }
    }
    let joined = components.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// From the last dot of the last component on; nothing without one.
pub(super) fn extension(name: &str) -> &str {
    let last = &name[name.rfind('/').map_or(0, |at| at + 1)..];
    last.rfind('.').map_or("", |at| &last[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_paths() {
        let cases = [
            ("", "."),
            ("/", "/"),
            ("//", "/"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/..", "/"),
            ("/../a", "/a"),
            ("..", ".."),
            ("../a", "../a"),
            ("a/..", "."),
            ("a/../..", ".."),
            ("../../a", "../../a"),
            ("/a/..b", "/a/..b"),
            (".", "."),
            ("./a", "a"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path), expected, "{path:?}");
        }
    }

    #[test]
    fn finds_extensions() {
        let cases = [
            ("a.service", ".service"),
            ("a", ""),
            ("a.b.c", ".c"),
            ("a.service/b", ""),
            (".conf", ".conf"),
            ("a.", "."),
        ];
        for (name, expected) in cases {
            assert_eq!(extension(name), expected, "{name:?}");
        }
    }
}
