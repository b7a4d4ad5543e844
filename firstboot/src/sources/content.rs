//! What user data must be: an Ignition config, plain or compressed by gzip.
//!
//! User data is the one place that other programs put their formats into as well, so that a clear word about these is
//! worth more than a parser's complaint. Left out: whether the config is valid, which is asked when it is parsed.

use std::io::Read;

use anyhow::Context;
use flate2::read::MultiGzDecoder;

/// The largest configuration that is taken, before and after decompression, in bytes.
pub(crate) const LIMIT: u64 = 16 << 20;
/// The first bytes of gzip (RFC 1952, 2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// How other formats begin, and what they are called.
const FOREIGN: &[(&str, &str)] = &[
    ("#cloud-config", "a cloud-config"),
    ("#cloud-boothook", "a cloud-init boot hook"),
    ("#include", "a cloud-init include file"),
    ("## template:", "a cloud-init template"),
    ("#!", "a script"),
    ("content-type:", "a MIME archive for cloud-init"),
    ("mime-version:", "a MIME archive for cloud-init"),
    ("<powershell>", "a PowerShell script"),
];

/// Decompresses user data where it is compressed. `None` when nothing is in it.
///
/// # Errors
/// When it does not decompress, is larger than [`LIMIT`] then, or is no Ignition config. No error repeats any of it.
pub(crate) fn user_data(raw: Vec<u8>) -> anyhow::Result<Option<Vec<u8>>> {
    let content = if raw.starts_with(&GZIP) { decompress(&raw)? } else { raw };
    anyhow::ensure!(content.len() as u64 <= LIMIT, "the user data is larger than {LIMIT} bytes");
    let Some(start) = content.iter().position(|byte| !byte.is_ascii_whitespace()) else { return Ok(None) };
    if content[start] != b'{' {
        anyhow::bail!("the user data is {}: NodeZero takes Ignition configs alone", kind(&content[start..]));
    }
    Ok(Some(content))
}

/// Content of a place that was made for a configuration.
///
/// # Errors
/// When it is empty.
pub(crate) fn present(content: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(!content.is_empty(), "it is empty");
    Ok(content)
}

fn decompress(raw: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    MultiGzDecoder::new(raw).take(LIMIT + 1).read_to_end(&mut content).context("decompressing the user data")?;
    Ok(content)
}

/// What something that is not JSON seems to be.
fn kind(content: &[u8]) -> &'static str {
    let begins =
        |start: &str| content.get(..start.len()).is_some_and(|content| content.eq_ignore_ascii_case(start.as_bytes()));
    FOREIGN.iter().find(|(start, _)| begins(start)).map_or("no JSON", |(_, name)| name)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// Compresses.
    pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).and_then(|()| encoder.finish()).expect("in memory")
    }

    #[test]
    fn ignition_configs_are_taken_and_nothing_is_none() {
        let config = b"\n {\"ignition\":{}}".to_vec();
        let two = [gzip(&config[..5]), gzip(&config[5..])].concat();
        for (case, raw, expected) in [
            ("plain", config.clone(), Some(config.clone())),
            ("gzip", gzip(&config), Some(config.clone())),
            ("gzip of two members", two, Some(config)),
            ("empty", Vec::new(), None),
            ("blank", b" \r\n".to_vec(), None),
            ("gzip of nothing", gzip(b""), None),
        ] {
            assert_eq!(user_data(raw).expect(case), expected, "{case}");
        }
    }

    #[test]
    fn other_formats_are_named() {
        for (raw, expected) in [
            ("#cloud-config\npassword: secret", "a cloud-config"),
            ("\n#!/bin/sh\n", "a script"),
            ("Content-Type: multipart/mixed", "a MIME archive for cloud-init"),
            ("#include\nhttp://h/", "a cloud-init include file"),
            ("hello secret", "no JSON"),
            ("[]", "no JSON"),
            ("#", "no JSON"),
        ] {
            let error = format!("{:#}", user_data(raw.into()).expect_err(raw));
            assert_eq!(error, format!("the user data is {expected}: NodeZero takes Ignition configs alone"), "{raw}");
            assert_eq!(format!("{:#}", user_data(gzip(raw.as_bytes())).expect_err(raw)), error, "{raw}, compressed");
        }
    }

    #[test]
    fn broken_and_large_ones_are_refused() {
        let config = gzip(&[b"{".to_vec(), vec![b' '; 5000]].concat());
        let mut flipped = config.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        let exact = [b"{".to_vec(), vec![b' '; LIMIT as usize - 1]].concat();
        assert_eq!(user_data(gzip(&exact)).expect("fits").map(|content| content.len() as u64), Some(LIMIT));
        let bomb = gzip(&[exact, b" ".to_vec()].concat());
        for (case, raw, expected) in [
            ("cut off", config[..config.len() - 9].to_vec(), "decompressing the user data: "),
            ("wrong checksum", flipped, "decompressing the user data: "),
            ("magic alone", GZIP.to_vec(), "decompressing the user data: "),
            ("too large", bomb, "the user data is larger than 16777216 bytes"),
        ] {
            let error = format!("{:#}", user_data(raw).expect_err(case));
            assert!(error.starts_with(expected), "{case}: {error}");
        }
    }
}
