//! `data` URLs.
//!
//! Specification: [RFC 2397](https://www.rfc-editor.org/rfc/rfc2397), with media types and parameters as in
//! [RFC 2045](https://www.rfc-editor.org/rfc/rfc2045). As strict as the reference implementation: base64 must be
//! padded and may not be percent-encoded, and plain data may hold only what may stand in a URL. The media type is
//! checked and then forgotten.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;

/// A `data` URL that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct DataUrlError(String);

/// Padding is demanded; the bits that the last character holds too many may be anything, as in Go.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// The data of a `data` URL.
///
/// # Errors
/// With what is wrong about its form; never with a part of the data.
pub(crate) fn decode(url: &str) -> Result<Vec<u8>, DataUrlError> {
    let (is_base64, data) = parse(url).map_err(DataUrlError)?;
    if is_base64 {
        // The library's error names a byte of the data.
        return BASE64.decode(data).map_err(|_| DataUrlError("the data URL's data is not base64".to_owned()));
    }
    plain_data(data).map_err(DataUrlError)
}

/// The `data` URL of these bytes, in base64.
pub(crate) fn encode(content: &[u8]) -> String {
    format!("data:;base64,{}", BASE64.encode(content))
}

/// Whether the data is in base64, and the data as it stands.
fn parse(url: &str) -> Result<(bool, &str), String> {
    let rest = url.strip_prefix("data:").ok_or("a data URL begins with data: in lower case")?;
    let mut rest = media_type(rest)?;
    let mut is_base64 = false;
    while let Some(parameter) = rest.strip_prefix(';') {
        let (name, after) = token(parameter);
        if name.is_empty() {
            return Err("the data URL has a parameter without a name".to_owned());
        }
        rest = match after.strip_prefix('=') {
            Some(value) => parameter_value(value)?,
            None if name == "base64" && after.starts_with(',') => {
                is_base64 = true;
                after
            }
            None => return Err("the data URL has a parameter without a value".to_owned()),
        };
    }
    let data = rest.strip_prefix(',').ok_or("the data URL has no comma before its data")?;
    Ok((is_base64, data))
}

/// Passes over the media type, if any.
fn media_type(text: &str) -> Result<&str, String> {
    if text.starts_with([';', ',']) {
        return Ok(text);
    }
    let (kind, rest) = token(text);
    let kinds = ["text", "image", "audio", "video", "application", "message", "multipart"];
    let extension = kind.starts_with("x-") || kind.starts_with("X-");
    if !extension && !kinds.iter().any(|known| kind.starts_with(known)) {
        return Err("the data URL's media type is unknown".to_owned());
    }
    let subtype = rest.strip_prefix('/').ok_or("the data URL's media type has no subtype")?;
    let (_, rest) = token(subtype);
    if !rest.starts_with([';', ',']) {
        return Err("the data URL's media type is malformed".to_owned());
    }
    Ok(rest)
}

/// A run of characters that need no quotes (RFC 2045), and what follows it.
fn token(text: &str) -> (&str, &str) {
    let is_token = |character: char| character.is_ascii_graphic() && !"()<>@,;:\\\"/[]?=".contains(character);
    text.split_at(text.find(|character| !is_token(character)).unwrap_or(text.len()))
}

/// Passes over a parameter's value.
fn parameter_value(text: &str) -> Result<&str, String> {
    let malformed = || "a parameter's value in the data URL is malformed".to_owned();
    if let Some(quoted) = text.strip_prefix('"') {
        let end = closing_quote(quoted).ok_or_else(malformed)?;
        let rest = &quoted[end + 1..];
        let is_valid = is_quoted(&quoted[..end]) && rest.starts_with([';', ',']);
        return is_valid.then_some(rest).ok_or_else(malformed);
    }
    let (value, rest) = token(text);
    let is_valid = !value.is_empty() && is_escaped(value) && rest.starts_with([';', ',']);
    is_valid.then_some(rest).ok_or_else(malformed)
}

/// The place of the first quote that no backslash precedes, among ASCII alone.
fn closing_quote(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(at),
            b'\\' => _ = bytes.next().filter(|(_, escaped)| escaped.is_ascii())?,
            byte if byte.is_ascii() => {}
            _ => return None,
        }
    }
    None
}

/// Whether each backslash in a quoted text begins an escape sequence, as in Go's strings.
fn is_quoted(text: &str) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let mut after = rest[at + 1..].chars();
        let digits = match after.next() {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' | '"') => Some(0),
            Some('x') => Some(2),
            Some('u') => Some(4),
            Some('U') => Some(8),
            Some('0'..='3') => {
                let octal = after
                    .as_str()
                    .get(..2)
                    .is_some_and(|digits| digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)));
                octal.then_some(2)
            }
            _ => None,
        };
        let Some(digits) = digits else { return false };
        let (code, after) = match after.as_str().split_at_checked(digits) {
            Some(split) => split,
            None => return false,
        };
        let is_hex = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_character = digits < 4 || u32::from_str_radix(code, 16).is_ok_and(|code| char::from_u32(code).is_some());
        if !is_hex || !is_character {
            return false;
        }
        rest = after;
    }
    true
}

fn plain_data(data: &str) -> Result<Vec<u8>, String> {
    let allowed = |byte: &u8| byte.is_ascii_graphic() && !b"<>#\"{}|\\^[]`".contains(byte);
    if let Some(at) = data.bytes().position(|byte| !allowed(&byte)) {
        return Err(format!("the data URL has a character at {at} of its data that must be escaped"));
    }
    if !is_escaped(data) {
        return Err("the data URL has a percent sign that escapes nothing".to_owned());
    }
    Ok(percent_decode_str(data).collect())
}

/// Whether each percent sign is followed by two hexadecimal digits.
fn is_escaped(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|after| after.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)))
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

    #[test]
    fn what_a_validator_takes_is_decoded() {
        let cases = [
            ("data:,", true),
            ("data:,a%20b", true),
            ("data:;base64,", true),
            ("data:;base64,YQ==", true),
            ("data:;base64,YR==", true),
            ("data:text/plain,a", true),
            ("data:text/plain;charset=utf-8,a", true),
            ("data:text/plain;charset=utf-8;base64,YQ==", true),
            ("data:x-a/b,c", true),
            ("data:text/,a", true),
            ("data:texts/x,a", true),
            ("data:;a=\"b;c,\",d", true),
            ("data:;a=\"\",d", true),
            ("data:;a=\"\\\"\\u0041\\101\",d", true),
            ("data:;a=%41,d", true),
            ("data:;base64=x,a", true),
            ("DATA:,a", false),
            ("data:", false),
            ("data:a", false),
            ("data:a/b,c", false),
            ("data:text,a", false),
            ("data:;,a", false),
            ("data:;a,b", false),
            ("data:;a=,b", false),
            ("data:;=a,b", false),
            ("data:;base64,YQ", false),
            ("data:;base64,Y", false),
            ("data:;base64,Y Q=", false),
            ("data:;base64,YQ==YQ==", false),
            ("data:;base64;a=b,YQ==", false),
            ("data:;BASE64,YQ==", false),
            ("data:,a b", false),
            ("data:,a#b", false),
            ("data:,%zz", false),
            ("data:,%4", false),
            ("data:,\u{e4}", false),
            ("data:;a=\"b,d", false),
            ("data:;a=\"\\q\",d", false),
            ("data:;a=\"\\'\",d", false),
            ("data:;a=\"\\ud800\",d", false),
            ("data:;a=\"\\777\",d", false),
            ("data:;a=%4,d", false),
            ("data:;a=\"b\"c,d", false),
            ("data:text/pl\u{e4}in,a", false),
        ];
        for (url, expected) in cases {
            let outcome = decode(url);
            assert_eq!(outcome.is_ok(), expected, "{url}: {outcome:?}");
        }
    }
}
