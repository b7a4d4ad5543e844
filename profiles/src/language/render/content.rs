//! Contents of files as data URLs ([RFC 2397](https://www.rfc-editor.org/rfc/rfc2397)), in the shortest way to write
//! them.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use ignition_config::v3_5::Resource;

/// The content of a file, for Ignition, in the shortest way without compression.
pub(super) fn plain(bytes: &[u8]) -> Resource {
    let ways = [percent(bytes), format!("data:;base64,{}", STANDARD.encode(bytes))];
    Resource { source: ways.into_iter().min_by_key(String::len), ..Resource::default() }
}

/// The content of a file, for Ignition, in the shortest way.
pub(super) fn shortest(bytes: &[u8]) -> Resource {
    let plain = plain(bytes);
    let packed = format!("data:;base64,{}", STANDARD.encode(gzip(bytes)));
    // The word `"compression":"gzip",` takes room, too.
    if packed.len() + 22 < plain.source.as_ref().map_or(0, String::len) {
        Resource { source: Some(packed), compression: Some("gzip".to_owned()), ..Resource::default() }
    } else {
        plain
    }
}

/// Compresses. The header holds neither time nor name.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

fn percent(bytes: &[u8]) -> String {
    let mut url = "data:,".to_owned();
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'():@&=+$,/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url += &format!("%{byte:02X}");
        }
    }
    url
}

/// The bytes of a text in base64.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn contents_are_written_in_the_shortest_way() {
        for (case, bytes, expected) in [
            ("nothing", b"".as_slice(), "data:,"),
            ("a word", b"worker-1\n", "data:,worker-1%0A"),
            ("bytes", &[0, 1, 2, 3, 255, 254], "data:;base64,AAECA//+"),
        ] {
            let resource = shortest(bytes);
            assert_eq!(resource.source.as_deref(), Some(expected), "{case}");
            assert_eq!(resource.compression, None, "{case}");
        }
        let long = "the same again and again\n".repeat(40);
        let resource = shortest(long.as_bytes());
        assert_eq!(resource.compression.as_deref(), Some("gzip"));
        let source = resource.source.expect("a source");
        let packed = from_base64(source.strip_prefix("data:;base64,").expect("base64")).expect("base64");
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, long);
        assert_eq!(&packed[4..8], [0; 4], "no time in the header");
    }
}
