//! Large downloads: what is gone on with, what begins anew, how long is waited.

use std::time::{Duration, Instant};

use debian::digest::Sha256;
use nodezero::cache::Cache;
use nodezero::fetch::{Fetcher, Length, Patience, Unavailable, Wanted};
use nodezero::progress::Progress;
use tempfile::TempDir;

use crate::server::{Fault, Server};

const PATH: &str = "/release/k3s";
const SIZE: usize = 6 << 20;
/// Short enough for a test, long enough for a busy machine.
const PATIENCE: Patience =
    Patience { connect: Duration::from_secs(5), silence: Duration::from_millis(700), reach: 1, tries: 3 };

struct Place {
    dir: TempDir,
    server: Server,
    content: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let server = Server::start();
        let content: Vec<u8> = (0..SIZE).map(|at| (at * 7 + at / 251) as u8).collect();
        server.put(PATH, content.clone());
        Self { dir: tempfile::tempdir().expect("a temporary directory"), server, content }
    }

    fn wanted(&self, length: Length) -> Wanted {
        let urls = vec![format!("{}{PATH}", self.server.url())];
        Wanted { title: "k3s v1".to_owned(), urls, sha256: Sha256::of(&self.content), length }
    }

    fn fetch_wanted(&self, wanted: Wanted) -> anyhow::Result<Vec<u8>> {
        let cache = Cache::open(Some(self.dir.path())).expect("it can be written");
        let fetcher = Fetcher::new(cache, false).with_patience(PATIENCE);
        let path = fetcher.fetch("files", &[wanted], &Progress::new(true))?.pop().expect("one was asked for")?;
        Ok(std::fs::read(path)?)
    }

    fn fetch(&self) -> anyhow::Result<Vec<u8>> {
        self.fetch_wanted(self.wanted(Length::AtMost(SIZE as u64 * 2)))
    }

    /// Asserts that nothing has a final name, and nothing was left behind.
    fn assert_empty(&self, case: &str) {
        for kind in ["files", "tmp"] {
            let left = std::fs::read_dir(self.dir.path().join(kind)).expect("the cache has it").count();
            assert_eq!(left, 0, "{case}: {kind}");
        }
    }
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let place = Place::new();
    place.server.tag(PATH, "one");
    // More cuts than tries: each brings a good part.
    place.server.fail(PATH, 2, &Fault::Cut);
    assert!(place.fetch().expect("it can be had") == place.content, "the same bytes");
    let ranges = place.server.take_ranges();
    assert_eq!(ranges, [format!("bytes={}-", SIZE / 2), format!("bytes={}-", SIZE / 2 + SIZE / 4)]);
}

#[test]
fn a_stalled_download_goes_on_where_it_ended() {
    let place = Place::new();
    place.server.tag(PATH, "one");
    place.server.fail(PATH, 1, &Fault::Stall);
    let start = Instant::now();
    assert!(place.fetch().expect("it can be had") == place.content, "the same bytes");
    assert!(start.elapsed() < Duration::from_secs(4), "silence is not waited out: {:?}", start.elapsed());
    assert_eq!(place.server.take_ranges().len(), 1);
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let place = Place::new();
    place.server.fail(PATH, 1, &Fault::Cut);
    assert!(place.fetch().expect("it can be had") == place.content, "the same bytes");
    assert_eq!(place.server.take_ranges(), [""; 0], "nothing says that the file is still the same");
}

#[test]
fn a_file_that_changed_meanwhile_begins_anew() {
    let mut place = Place::new();
    let old = std::mem::replace(&mut place.content, vec![7; SIZE]);
    place.server.tag(PATH, "old");
    place.server.fail(PATH, 1, &Fault::Stall);
    let (server, new) = (place.server.clone(), place.content.clone());
    let change = std::thread::spawn(move || {
        // While the first answer is silent, and before the client has had enough of it.
        std::thread::sleep(Duration::from_millis(300));
        server.put(PATH, new);
        server.tag(PATH, "new");
    });
    assert!(place.fetch().expect("it can be had") == place.content, "not a mixture");
    change.join().expect("it does not panic");
    assert!(old != place.content);
}

#[test]
fn wrong_files_are_refused_by_both_digests() {
    let place = Place::new();
    let (exact, limit) = (Length::Exactly(SIZE as u64), Length::AtMost(SIZE as u64));
    let mut flipped = place.content.clone();
    flipped[SIZE / 3] ^= 1;
    let longer = [place.content.as_slice(), b"x"].concat();
    let cases = [
        ("a flipped bit", flipped.clone(), exact, Sha256::of(&flipped).to_string()),
        ("a flipped bit, size unknown", flipped.clone(), limit, Sha256::of(&flipped).to_string()),
        ("an end that is missing", place.content[1..].to_vec(), exact, format!("{} bytes", SIZE - 1)),
        ("more than expected", longer.clone(), exact, format!("larger than the {SIZE} bytes")),
        ("more than the limit", longer, limit, format!("larger than the {SIZE} bytes")),
        ("nothing", Vec::new(), limit, "(0 bytes)".to_owned()),
    ];
    for (case, content, length, word) in cases {
        place.server.put(PATH, content);
        let error = format!("{:#}", place.fetch_wanted(place.wanted(length)).expect_err(case));
        assert!(error.contains(&word) && error.contains("k3s v1"), "{case}: {error}");
        place.assert_empty(case);
    }
    // The content is right, the pinned size is not.
    place.server.put(PATH, place.content.clone());
    let error = place.fetch_wanted(place.wanted(Length::Exactly(SIZE as u64 + 1))).expect_err("another size");
    assert!(format!("{error:#}").contains(&format!("({SIZE} bytes), expected")), "{error:#}");
    place.assert_empty("another size");
}

#[test]
fn what_cannot_be_had_is_told_from_what_is_broken() {
    let cases = [
        ("refused", Some(Fault::Status(403)), true),
        ("too many redirections", None, false),
        ("server errors", Some(Fault::Status(500)), false),
        ("cut each time", Some(Fault::Cut), false),
    ];
    for (case, fault, unavailable) in cases {
        let place = Place::new();
        let url = format!("{}{PATH}", place.server.url());
        place.server.fail(PATH, usize::MAX, &fault.unwrap_or(Fault::Redirect(url)));
        let start = Instant::now();
        let error = place.fetch().expect_err(case);
        assert_eq!(error.is::<Unavailable>(), unavailable, "{case}: {error:#}");
        assert!(start.elapsed() < Duration::from_secs(20), "{case}: {:?}", start.elapsed());
        place.assert_empty(case);
    }
    let place = Place::new();
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let urls = vec![format!("http://{}/k3s", closed.expect("the loopback has a free port"))];
    let wanted = Wanted { urls, ..place.wanted(Length::AtMost(1)) };
    let start = Instant::now();
    let error = place.fetch_wanted(wanted).expect_err("nobody listens there");
    assert!(error.is::<Unavailable>(), "{error:#}");
    assert!(start.elapsed() < Duration::from_secs(2), "asked once: {:?}", start.elapsed());
}
