//! Merging SBAT metadata (<https://github.com/rhboot/shim/blob/main/SBAT.md>).

use crate::Error;

const VERSION_LINE: &str = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md";

/// One `.sbat` content of several, such as the stub's and the kernel's, so that either can be revoked: the version
/// line once, then the lines of all in order, each once. NUL padding at the end of an input is taken off.
pub fn merge_sbat(inputs: &[&str]) -> Result<String, Error> {
    let mut lines = vec![VERSION_LINE];
    for input in inputs {
        let mut input_lines = input.trim_end_matches('\0').lines();
        let first = input_lines.next().unwrap_or_default();
        if !first.starts_with("sbat,") {
            return Err(Error::Sbat(first.chars().take(40).collect()));
        }
        for line in input_lines.filter(|line| !line.is_empty()) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    Ok(lines.iter().flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_merged_once() {
        let stub = "sbat,1,x\nstub,1,A\nstub.debian,1,B\n\0\0";
        let kernel = "sbat,1,y\nlinux,1,C\nstub,1,A";
        let merged = merge_sbat(&[stub, kernel]).unwrap();
        assert_eq!(merged, format!("{VERSION_LINE}\nstub,1,A\nstub.debian,1,B\nlinux,1,C\n"));
        assert_eq!(merge_sbat(&[&merged, &merged]).unwrap(), merged);
        for case in ["", "\0", "stub,1,A"] {
            assert!(matches!(merge_sbat(&[stub, case]), Err(Error::Sbat(_))), "{case:?}");
        }
    }
}
