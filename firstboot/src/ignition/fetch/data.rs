//! `data` URLs.
//!
//! Specification: [RFC 2397](https://www.rfc-editor.org/rfc/rfc2397), with media types and parameters as in
//! [RFC 2045](https://www.rfc-editor.org/rfc/rfc2045). As strict as the reference implementation: base64 must be
//! padded and may not be percent-encoded, and plain data may hold only what may stand in a URL. The media type is
//! checked and then forgotten.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

/// A `data` URL that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("data URL: {0}")]
pub(crate) struct DataUrlError(&'static str);

/// Padding is demanded; the bits that the last character holds too many may be anything, as in Go.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// The data of a `data` URL.
///
/// # Errors
/// With what is wrong about its form; never with a part of the data.
pub(crate) fn decode(url: &str) -> Result<Vec<u8>, DataUrlError> {
    let rest = url.strip_prefix("data:").ok_or(DataUrlError("it does not begin with \"data:\""))?;
    let rest = skip_media_type(rest)?;
    let (base64, data) = skip_parameters(rest)?;
    if base64 {
        return BASE64.decode(data).map_err(|_| DataUrlError("the data is not base64"));
    }
    if !data.bytes().all(is_url_byte) {
        return Err(DataUrlError("the data holds a character that must be percent-encoded"));
    }
    unescape(data)
}

/// The `data` URL of these bytes, in base64.
pub(crate) fn encode(content: &[u8]) -> String {
    format!("data:;base64,{}", BASE64.encode(content))
}

fn skip_media_type(text: &str) -> Result<&str, DataUrlError> {
    if text.starts_with([';', ',']) {
        return Ok(text);
    }
    let end = text.find(|c| !is_token(c)).ok_or(DataUrlError("the comma before the data is missing"))?;
    let (kind, rest) = text.split_at(end);
    let rest = rest.strip_prefix('/').ok_or(DataUrlError("the media type has no slash"))?;
    let known = ["text", "image", "audio", "video", "application", "message", "multipart", "x-", "X-"];
    if !known.iter().any(|known| kind.starts_with(known)) {
        return Err(DataUrlError("the media type is none of RFC 2045"));
    }
    let end = rest.find(|c| !is_token(c)).ok_or(DataUrlError("the comma before the data is missing"))?;
    Ok(&rest[end..])
}

/// Skips `;attribute=value` and `;base64`, which must be last, and the comma.
fn skip_parameters(mut text: &str) -> Result<(bool, &str), DataUrlError> {
    while let Some(rest) = text.strip_prefix(';') {
        let end = rest.find(|c| !is_token(c)).filter(|end| *end > 0).ok_or(DataUrlError("a parameter has no name"))?;
        let (attribute, rest) = rest.split_at(end);
        if let Some(data) = rest.strip_prefix(',') {
            return if attribute == "base64" {
                Ok((true, data))
            } else {
                Err(DataUrlError("a parameter has no value, and is not \"base64\""))
            };
        }
        let rest = rest.strip_prefix('=').ok_or(DataUrlError("a parameter has no value"))?;
        text = match rest.strip_prefix('"') {
            Some(quoted) => skip_quoted(quoted)?,
            None => {
                let end = rest
                    .find(|c| !is_token(c))
                    .filter(|end| *end > 0)
                    .ok_or(DataUrlError("a parameter has no value"))?;
                unescape(&rest[..end])?;
                &rest[end..]
            }
        };
    }
    let data = text.strip_prefix(',').ok_or(DataUrlError("the comma before the data is missing"))?;
    Ok((false, data))
}

fn skip_quoted(text: &str) -> Result<&str, DataUrlError> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if !c.is_ascii() || c == '\n' => {
                return Err(DataUrlError("a quoted value holds a character that it may not"));
            }
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok(&text[at + 1..]),
            _ => {}
        }
    }
    Err(DataUrlError("a quoted value has no end"))
}

fn unescape(text: &str) -> Result<Vec<u8>, DataUrlError> {
    let bytes = text.as_bytes();
    let complete = |at: usize| bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if !(0..bytes.len()).all(|at| bytes[at] != b'%' || complete(at)) {
        return Err(DataUrlError("a percent sign is not followed by two hexadecimal digits"));
    }
    Ok(percent_encoding::percent_decode(bytes).collect())
}

/// Whether a character may stand in a token of RFC 2045.
fn is_token(c: char) -> bool {
    c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(c)
}

/// Whether a byte may stand in a URL by itself; the percent sign included.
fn is_url_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"<>#\"{}|\\^[]`".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reference_takes_is_taken() {
        for (url, expected) in [
            ("data:,", &b""[..]),
            ("data:,abc", b"abc"),
            ("data:,a%20b%0A", b"a b\n"),
            ("data:,%ff%00", b"\xff\x00"),
            ("data:,a,b;c=d?e&f", b"a,b;c=d?e&f"),
            ("data:,a+b", b"a+b"),
            ("data:text/plain,x", b"x"),
            ("data:text/plain;charset=utf-8,x", b"x"),
            ("data:text/plain;charset=\"a,b;\\\"c\",x", b"x"),
            ("data:text/,x", b"x"),
            ("data:x-own/thing,x", b"x"),
            ("data:;charset=utf-8,x", b"x"),
            ("data:;base64,", b""),
            ("data:;base64,aGVsbG8=", b"hello"),
            ("data:;base64,aGVsbG9=", b"hello"),
            ("data:application/octet-stream;x=y;base64,AP8=", b"\x00\xff"),
        ] {
            assert_eq!(decode(url).as_deref(), Ok(expected), "{url}");
        }
    }

    #[test]
    fn what_the_reference_refuses_is_refused() {
        for url in [
            "",
            "DATA:,x",
            "data:",
            "data:abc",
            "data:text,x",
            "data:fruit/apple,x",
            "data:/plain,x",
            "data:;,x",
            "data:;charset,x",
            "data:;charset=,x",
            "data:;=utf-8,x",
            "data:;charset=\"open,x",
            "data:;charset=%zz,x",
            "data:;base64;charset=utf-8,eA==",
            "data:;base64,a",
            "data:;base64,aGVsbG8",
            "data:;base64,aGVsbG8%3D",
            "data:;base64,a-_=",
            "data:;base64,aGVs bG8=",
            "data:;base64,aGVs\nbG8=",
            "data:,a b",
            "data:,a\nb",
            "data:,%",
            "data:,%4",
            "data:,%4g",
            "data:,a#b",
            "data:,{}",
            "data:,\u{e4}",
        ] {
            assert!(decode(url).is_err(), "{url:?}");
        }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        for content in [&b""[..], b"a", b"ab", b"abc", b"\x00\xff\xfe"] {
            assert_eq!(decode(&encode(content)).as_deref(), Ok(content), "{content:?}");
        }
        arbtest::arbtest(|input| {
            let _ = decode(&format!("data:{}", input.arbitrary::<String>()?));
            Ok(())
        })
        .budget_ms(200);
    }
}
