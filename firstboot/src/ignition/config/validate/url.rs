//! URLs of resources.
//!
//! From RFC 3986, with the leniency and strictness of Go's `net/url`, by which the reference judges: what the `url` crate
//! would mend on the way (it follows the WHATWG's standard) is refused here, and the reverse.

use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use crate::ignition::fetch::data;

/// The parts of a URL that the rules look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url<'t> {
    /// In lower case; empty when there is none.
    pub(super) scheme: String,
    /// What follows the scheme, where that is not a path from a root.
    opaque: &'t str,
    query: &'t str,
}

/// Parses a URL, which may be relative; `None` when it is malformed.
pub(super) fn parse(text: &str) -> Option<Url<'_>> {
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    if !is_escaped(fragment) || text.bytes().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    let (scheme, rest) = split_scheme(text)?;
    let scheme = scheme.to_ascii_lowercase();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            return Some(Url { scheme, opaque: rest, query });
        }
        // It would look like a scheme.
        if rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return None;
        }
    }
    let mut path = rest;
    if let Some(after) = rest.strip_prefix("//")
        && (!scheme.is_empty() || !after.starts_with('/'))
    {
        let (authority, rest) = after.split_at(after.find('/').unwrap_or(after.len()));
        if !is_authority(authority) {
            return None;
        }
        path = rest;
    }
    is_escaped(path).then_some(Url { scheme, opaque: "", query })
}

/// Checks the source of a resource by a minor version's schemes.
pub(super) fn validate(text: &str, minor: u8) -> Result<(), String> {
    let Some(url) = parse(text) else {
        return Err("source is not a URL".to_owned());
    };
    match url.scheme.as_str() {
        "http" | "https" | "tftp" => Ok(()),
        "gs" if minor >= 2 => Ok(()),
        "s3" => object_version(&url),
        "arn" if minor >= 4 => amazon_resource(&url).and_then(|()| object_version(&url)),
        "data" => data::decode(text).map(drop).map_err(|error| error.to_string()),
        "" => Err("source has no URL scheme".to_owned()),
        scheme => Err(format!("source's URL scheme {scheme} is not supported by this version")),
    }
}

/// A name before the first colon; `None` when nothing precedes that.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return None,
            b':' => return Some((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Some(("", text))
}

/// Whether each percent sign begins an escaped byte.
fn is_escaped(text: &str) -> bool {
    escapes(text.as_bytes()).all(|byte| byte.is_some())
}

/// The bytes that are escaped; `None` for a percent sign that escapes nothing.
fn escapes(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    text.iter().enumerate().filter(|(_, byte)| **byte == b'%').map(|(at, _)| {
        let digits = text.get(at + 1..at + 3).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    })
}

fn is_authority(authority: &str) -> bool {
    match authority.rsplit_once('@') {
        None => is_host(authority),
        Some((user, host)) => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
            is_host(host) && user.bytes().all(allowed) && is_escaped(user)
        }
    }
}

fn is_host(host: &str) -> bool {
    match host.rfind('[') {
        Some(0) => is_bracketed(&host[1..]),
        Some(_) => false,
        None => {
            // Several hosts are let through, each with its port.
            let colon = host.rfind(':');
            colon.is_none_or(|at| is_port(&host[at..])) && is_host_text(host)
        }
    }
}

/// An IPv6 address, perhaps with a zone, its closing bracket, and perhaps a port.
fn is_bracketed(text: &str) -> bool {
    let Some((address, port)) = text.rsplit_once(']') else { return false };
    let (address, zone) = match address.find("%25") {
        Some(at) => (&address[..at], Some(&address[at + 3..])),
        None => (address, None),
    };
    let zone_is_valid = zone.is_none_or(|zone| !zone.is_empty() && is_zone(zone));
    is_port(port) && zone_is_valid && address.parse::<Ipv6Addr>().is_ok()
}

fn is_zone(zone: &str) -> bool {
    let plain = is_escaped(zone) && zone.bytes().all(|byte| byte == b'%' || is_host_byte(byte));
    // What may stand there plainly may be escaped too, and a percent sign or space.
    plain
        && escapes(zone.as_bytes())
            .flatten()
            .all(|byte| byte == b'%' || byte == b' ' || (is_host_byte(byte) && byte.is_ascii()))
}

fn is_host_text(host: &str) -> bool {
    let plain = host.bytes().all(|byte| byte == b'%' || is_host_byte(byte));
    // Bytes beyond ASCII may be escaped, and the percent sign itself.
    plain && escapes(host.as_bytes()).all(|byte| byte.is_some_and(|byte| byte >= 0x80 || byte == b'%'))
}

fn is_host_byte(byte: u8) -> bool {
    !byte.is_ascii() || byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"".contains(&byte)
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An object of S3 by its Amazon resource name: `arn:PARTITION:s3:REGION:ACCOUNT:BUCKET/KEY`.
fn amazon_resource(url: &Url<'_>) -> Result<(), String> {
    let malformed = || Err("source is not the name of an object in S3".to_owned());
    let sections: Vec<_> = url.opaque.splitn(5, ':').collect();
    let [_, "s3", _, _, resource] = sections[..] else { return malformed() };
    let slashes = url.opaque.matches('/').count();
    let needed = if resource.starts_with("accesspoint/") { 2 } else { 1 };
    if slashes < needed { malformed() } else { Ok(()) }
}

/// A version of an object that is asked for must be named.
fn object_version(url: &Url<'_>) -> Result<(), String> {
    let parameters = url.query.split('&').filter(|parameter| !parameter.is_empty() && !parameter.contains(';'));
    for parameter in parameters {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !is_escaped(key) || !is_escaped(value) {
            continue;
        }
        if percent_decode_str(key).eq("versionId".bytes()) {
            return if value.is_empty() { Err("source's versionId is empty".to_owned()) } else { Ok(()) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_sources() {
        let cases = [
            ("http://a/b", 0, true),
            ("HTTPS://a", 0, true),
            ("tftp://a:69/b", 0, true),
            ("http:a", 0, true),
            ("http:///a", 0, true),
            ("http://", 0, true),
            ("http://a?b#c", 0, true),
            ("http://a/%41", 0, true),
            ("http://u:p@a:1/", 0, true),
            ("http://u%41@a/", 0, true),
            ("http://[::1]:80/", 0, true),
            ("http://[fe80::1%25en0]/", 0, true),
            ("http://a:", 0, true),
            ("tftp://a:1,b:2/", 0, true),
            ("http://%e4/", 0, true),
            ("http://a/b c", 0, true),
            ("http://\u{e4}/", 0, true),
            ("gs://b/k", 1, false),
            ("gs://b/k", 2, true),
            ("s3://b/k", 0, true),
            ("s3://b/k?versionId=1", 0, true),
            ("s3://b/k?versionId=", 0, false),
            ("s3://b/k?versionId", 0, false),
            ("s3://b/k?versionId=&versionId=1", 6, false),
            ("s3://b/k?a;versionId=", 6, true),
            ("s3://b/k?version%49d=", 6, false),
            ("s3://b/k?versionId=%zz", 6, true),
            ("arn:aws:s3:::b/k", 3, false),
            ("arn:aws:s3:::b/k", 4, true),
            ("arn:aws:s3:::b", 4, false),
            ("arn:aws:ec2:::b/k", 4, false),
            ("arn:aws:s3:r:a:accesspoint/p", 4, false),
            ("arn:aws:s3:r:a:accesspoint/p/object/k", 4, true),
            ("arn:aws:s3:::b/k?versionId=", 4, false),
            ("arn:aws:s3::b/k", 4, false),
            ("ARN:aws:s3:::b/k", 4, true),
            ("arn:/aws:s3:::b/k", 4, false),
            ("ftp://a", 6, false),
            ("a/b", 6, false),
            ("/a", 6, false),
            ("*", 6, false),
            (":a", 6, false),
            ("1http://a", 6, false),
            ("http://a\n", 6, false),
            ("http://a/%4", 6, false),
            ("http://a#%zz", 6, false),
            ("http://a b/", 6, false),
            ("http://a:x/", 6, false),
            ("http://a:1:2/", 6, true),
            ("http://u^@a/", 6, false),
            ("http://u%4@a/", 6, false),
            ("http://%41/", 6, false),
            ("http://[::1/", 6, false),
            ("http://[1.2.3.4]/", 6, false),
            ("http://[::1]x/", 6, false),
            ("http://x[::1]/", 6, false),
            ("http://[::1%25]/", 6, false),
            ("http://[::1%en0]/", 6, false),
            ("a:b", 6, false),
            ("oem:///a", 6, false),
            ("file:///a", 6, false),
        ];
        for (text, minor, expected) in cases {
            let outcome = validate(text, minor);
            assert_eq!(outcome.is_ok(), expected, "{text} in 3.{minor}.0: {outcome:?}");
        }
    }
}
