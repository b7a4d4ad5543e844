//! Fetching from servers on loopback.

pub(crate) mod server;
mod tftp;
pub(crate) mod tls;

use std::io::Write;
use std::time::{Duration, Instant};

use super::*;
use crate::ignition::config::types::{HttpHeadersItem, Proxy, Timeouts as TimeoutSettings, Verification};
use server::{Reply, Server};

/// An environment with neither proxies nor certificate authorities.
pub(crate) fn network() -> Network {
    Network { http_proxy: None, https_proxy: None, no_proxy: None, authorities: "/nonexistent".into() }
}

fn fetcher(settings: &Ignition) -> Fetcher {
    Fetcher::bare(&network(), false, Log::Stdout).with(settings, Some(Duration::from_secs(20))).expect("settings")
}

fn resource(source: impl Into<String>) -> Resource {
    Resource { source: Some(source.into()), ..Resource::default() }
}

fn timeouts(headers: Option<i64>, total: Option<i64>) -> Ignition {
    let timeouts = TimeoutSettings { http_response_headers: headers, http_total: total };
    Ignition { timeouts: Some(timeouts), ..Ignition::default() }
}

fn fetch(settings: &Ignition, resource: &Resource) -> Result<String, String> {
    let content = fetcher(settings).fetch(resource, 1 << 20).map_err(|error| format!("{error:#}"))?;
    Ok(String::from_utf8(content).expect("text"))
}

fn with_headers(source: String, headers: &[(&str, &str)]) -> Resource {
    let item = |(name, value): &(&str, &str)| HttpHeadersItem { name: (*name).into(), value: Some((*value).into()) };
    Resource { http_headers: Some(headers.iter().map(item).collect()), ..resource(source) }
}

#[test]
fn a_request_has_manners() {
    let server = Server::http(|_, _| Reply::ok("hello"));
    assert_eq!(fetch(&Ignition::default(), &resource(server.url("/a?b=c"))).as_deref(), Ok("hello"));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].line, "GET /a?b=c");
    assert_eq!(requests[0].header("accept"), ["application/vnd.coreos.ignition+json;version=3.6.0, */*;q=0.1"]);
    assert_eq!(requests[0].header("accept-encoding"), ["identity"]);
    assert_eq!(requests[0].header("user-agent"), [concat!("NodeZero-Ignition/", env!("CARGO_PKG_VERSION"))]);
}

#[test]
fn own_headers_come_over_the_others_and_are_not_sent_on() {
    let server = Server::http(|request, _| match request.line.as_str() {
        "GET /from" => Reply::redirect(302, "/to"),
        _ => Reply::ok("there"),
    });
    let own = [("X-Auth", "secret"), ("user-agent", "Mine"), ("ACCEPT", "text/plain"), ("Authorization", "Bearer t")];
    assert_eq!(fetch(&Ignition::default(), &with_headers(server.url("/from"), &own)).as_deref(), Ok("there"));
    let [from, to] = &server.requests()[..] else { panic!("two requests") };
    assert_eq!(from.header("x-auth"), ["secret"]);
    assert_eq!(from.header("user-agent"), ["Mine"]);
    assert_eq!(from.header("accept"), ["text/plain"]);
    assert_eq!(from.header("accept-encoding"), ["identity"]);
    for name in ["x-auth", "authorization"] {
        assert_eq!(to.header(name), [""; 0], "{name} was sent on");
    }
    assert!(to.header("user-agent")[0].starts_with("NodeZero-Ignition/"));
    assert!(to.header("accept")[0].starts_with("application/vnd.coreos.ignition+json"));
}

#[test]
fn headers_that_cannot_be_sent_are_refused_without_their_value() {
    for (name, value) in [("", "secret"), ("a b", "secret"), ("X-Auth", "sec\nret"), ("X-Auth", "")] {
        let error = fetch(&Ignition::default(), &with_headers("http://127.0.0.1:1/".into(), &[(name, value)]));
        let error = error.expect_err("refused");
        assert!(error.contains("HTTP header") && !error.contains("ret"), "{name:?}: {error}");
    }
}

#[test]
fn user_and_password_are_sent_and_not_shown() {
    let server = Server::http(|_, _| Reply::status(403));
    let url = format!("http://me:secret@{}/x?token=secret", server.address);
    let error = fetch(&Ignition::default(), &resource(url)).expect_err("403");
    assert_eq!(server.requests()[0].header("authorization"), ["Basic bWU6c2VjcmV0"]);
    assert_eq!(error, format!("fetching http://{}/x?…: the server answered 403 Forbidden", server.address));
}

#[test]
fn server_errors_and_broken_connections_are_tried_again() {
    let server = Server::http(|_, number| match number {
        0 => Reply::status(500),
        1 => Reply::Raw(Vec::new()),
        2 => Reply::status(599),
        _ => Reply::ok("at last"),
    });
    let start = Instant::now();
    assert_eq!(fetch(&Ignition::default(), &resource(server.url("/"))).as_deref(), Ok("at last"));
    assert_eq!(server.requests().len(), 4);
    assert!(start.elapsed() >= Duration::from_millis(100 + 200 + 400), "pauses grow: {:?}", start.elapsed());
}

#[test]
fn other_answers_are_final() {
    for (status, expected) in [
        (404, "the server answered 404 Not Found: there is no such resource"),
        (400, "the server answered 400 Bad Request"),
        (401, "the server answered 401 Unauthorized"),
        (410, "the server answered 410 Gone"),
        (429, "the server answered 429 Too Many Requests"),
        (206, "the server answered 206 Partial Content"),
        (304, "the server answered 304 Not Modified"),
        (302, "following a redirect (302 Found): it names no location"),
    ] {
        let server = Server::http(move |_, _| Reply::status(status));
        let error = fetch(&Ignition::default(), &resource(server.url("/"))).expect_err(expected);
        assert_eq!(error, format!("fetching {}: {expected}", server.url("/")));
        assert_eq!(server.requests().len(), 1, "{status}");
    }
    let server = Server::http(|_, _| Reply::Raw(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()));
    assert_eq!(fetch(&Ignition::default(), &resource(server.url("/"))).as_deref(), Ok(""));
}

#[test]
fn redirects_are_followed_ten_times() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::http(move |request, _| match request.line.as_str() {
            "GET /a/from" => Reply::redirect(status, "../to?x"),
            "GET /to?x" => Reply::ok("there"),
            _ => Reply::status(404),
        });
        assert_eq!(fetch(&Ignition::default(), &resource(server.url("/a/from"))).as_deref(), Ok("there"), "{status}");
    }
    let server = Server::http(|_, number| Reply::redirect(302, format!("/{number}")));
    let error = fetch(&Ignition::default(), &resource(server.url("/"))).expect_err("a loop");
    assert!(error.ends_with("the server redirects more than 10 times"), "{error}");
    assert_eq!(server.requests().len(), 11);
    let server = Server::http(|_, _| Reply::redirect(302, "file:///etc/shadow"));
    let error = fetch(&Ignition::default(), &resource(server.url("/"))).expect_err("another scheme");
    assert!(error.ends_with("it points to a URL of scheme file"), "{error}");
}

#[test]
fn an_answer_that_does_not_come_is_asked_for_again_until_time_is_up() {
    let server = Server::http(|_, number| if number == 0 { Reply::Hang(Vec::new()) } else { Reply::ok("now") });
    assert_eq!(fetch(&timeouts(Some(1), Some(10)), &resource(server.url("/"))).as_deref(), Ok("now"));
    let server = Server::http(|_, _| Reply::Hang(Vec::new()));
    let start = Instant::now();
    let error = fetch(&timeouts(Some(1), Some(2)), &resource(server.url("/"))).expect_err("hangs");
    assert!(error.contains("it could not be fetched within 2s: 2 attempts, the last one: no answer within"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let error = fetch(&timeouts(None, Some(1)), &resource("http://127.0.0.1:1/")).expect_err("nobody listens");
    assert!(error.contains("it could not be fetched within 1s") && error.contains("refused"), "{error}");
}

#[test]
fn the_first_config_is_waited_for_as_long_as_the_command_line_says() {
    let server = Server::http(|_, _| Reply::status(503));
    let bare = Fetcher::bare(&network(), false, Log::Stdout);
    let fetcher = bare.with(&Ignition::default(), Some(Duration::from_millis(500))).expect("settings");
    let error = fetcher.fetch(&resource(server.url("/")), 100).expect_err("503");
    assert!(
        format!("{error:#}").contains("within 500ms: 3 attempts, the last one: the server answered 503"),
        "{error:#}"
    );
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn contents_that_break_off_or_stand_still_are_an_error() {
    let server = Server::http(|_, _| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec()));
    let error = fetch(&Ignition::default(), &resource(server.url("/"))).expect_err("truncated");
    assert!(error.contains("reading it: "), "{error}");
    assert_eq!(server.requests().len(), 1, "part of it has been passed on");
    let server = Server::http(|_, _| Reply::Hang(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_vec()));
    let start = Instant::now();
    let error = fetch(&timeouts(None, Some(1)), &resource(server.url("/"))).expect_err("stands still");
    assert!(error.contains("stood still"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
    let server = Server::http(|_, _| Reply::Raw(chunked.to_vec()));
    assert_eq!(fetch(&Ignition::default(), &resource(server.url("/"))).as_deref(), Ok("hello"));
    let server = Server::http(|_, _| Reply::Raw(chunked[..chunked.len() - 5].to_vec()));
    assert!(fetch(&Ignition::default(), &resource(server.url("/"))).is_err(), "no last chunk");
}

#[test]
fn contents_are_decompressed_verified_and_bounded() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 8 << 20]).expect("memory");
    let bomb = encoder.finish().expect("memory");
    let server = Server::http(move |_, _| Reply::ok(bomb.clone()));
    let gzip = Resource { compression: Some("gzip".into()), ..resource(server.url("/bomb")) };
    let error = fetch(&Ignition::default(), &gzip).expect_err("too large");
    assert!(error.ends_with("decompressing it with gzip: it is larger than 1048576 bytes"), "{error}");
    let mut size = Size(0);
    fetcher(&Ignition::default()).fetch_to(&gzip, &mut size).expect("a file may be large");
    assert_eq!(size.0, 8 << 20);
    let server = Server::http(|_, _| Reply::ok("hullo"));
    let hash = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let verified =
        |source| Resource { verification: Some(Verification { hash: Some(hash.into()) }), ..resource(source) };
    let error = fetch(&Ignition::default(), &verified(server.url("/"))).expect_err("another hash");
    assert!(error.contains("its hash is ") && error.ends_with(&format!("expected {}", &hash[7..])), "{error}");
    assert_eq!(fetch(&Ignition::default(), &verified("data:,hello".into())).as_deref(), Ok("hello"));
    assert_eq!(fetch(&Ignition::default(), &Resource::default()).as_deref(), Ok(""));
}

struct Size(usize);

impl Write for Size {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn proxies_are_used_for_what_they_are_for() {
    let proxy = Server::http(|_, _| Reply::ok("by proxy"));
    let settings = |no: &[&str]| Ignition {
        proxy: Some(Proxy {
            http_proxy: Some(format!("http://me:secret@{}", proxy.address)),
            https_proxy: None,
            no_proxy: Some(no.iter().map(|&no| no.to_owned()).collect()),
        }),
        ..timeouts(None, Some(1))
    };
    assert_eq!(fetch(&settings(&[]), &resource("http://origin.test/x?y")).as_deref(), Ok("by proxy"));
    let requests = proxy.requests();
    assert_eq!(requests[0].line, "GET http://origin.test/x?y");
    assert_eq!(requests[0].header("proxy-authorization"), ["Basic bWU6c2VjcmV0"]);
    let origin = Server::http(|_, _| Reply::ok("directly"));
    assert_eq!(fetch(&settings(&[]), &resource(origin.url("/"))).as_deref(), Ok("directly"), "loopback");
    fetch(&settings(&["192.0.2.0/24"]), &resource("http://192.0.2.1/")).expect_err("no such host");
    assert_eq!(proxy.requests().len(), 1, "excepted");
    let environment = Network { http_proxy: Some(proxy.address.to_string()), ..network() };
    let of_environment = Fetcher::bare(&environment, false, Log::Stdout).with(&Ignition::default(), None);
    let content = of_environment.expect("settings").fetch(&resource("http://origin.test/"), 100).expect("by proxy");
    assert_eq!(content, b"by proxy");
}

#[test]
fn what_is_not_supported_says_so() {
    for (source, expected) in [
        ("s3://bucket/key", "NodeZero does not fetch from s3 sources"),
        ("gs://bucket/key", "NodeZero does not fetch from gs sources"),
        ("arn:aws:s3:::bucket/key", "NodeZero does not fetch from arn sources"),
        ("ftp://h/x", "the source scheme ftp is not supported"),
        ("file:///etc/passwd", "the source scheme file is not supported"),
        ("/etc/passwd", "reading the URL"),
        ("data:;base64,secret!", "fetching a data URL: the data URL's data is not base64"),
    ] {
        let error = fetch(&Ignition::default(), &resource(source)).expect_err(source);
        assert!(error.contains(expected) && !error.contains("secret"), "{source}: {error}");
    }
}

#[test]
fn nothing_secret_is_in_what_is_printed_for_debugging() {
    let environment = Network { http_proxy: Some("http://me:secret@h:1".into()), ..network() };
    let proxy = Proxy { http_proxy: Some("http://me:secret@h:2".into()), https_proxy: None, no_proxy: None };
    let settings = Ignition { proxy: Some(proxy), ..Ignition::default() };
    let fetcher = Fetcher::bare(&environment, false, Log::Stdout).with(&settings, Some(Duration::from_millis(1)));
    let fetcher = fetcher.expect("settings");
    fetcher.fetch(&resource("http://127.0.0.1:1/"), 1).expect_err("nobody listens");
    let text = format!("{fetcher:?}");
    assert!(text.contains("Fetcher") && !text.contains("secret"), "{text}");
}

#[test]
fn without_network_only_data_urls_are_read() {
    let offline = Fetcher::bare(&network(), true, Log::Stdout);
    assert!(offline.is_offline());
    assert_eq!(offline.fetch(&resource("data:,x"), 1).expect("data"), b"x");
    assert_eq!(offline.fetch(&Resource::default(), 1).expect("nothing"), b"");
    for source in ["http://h/", "https://h/", "tftp://h/x", "s3://b/k"] {
        let error = offline.fetch(&resource(source), 1).expect_err(source);
        assert!(NeedsNetwork::caused(&error), "{source}: {error:#}");
        assert!(needs_network(&resource(source)));
    }
    assert!(!NeedsNetwork::caused(&anyhow::anyhow!("another")));
    for resource in [resource("data:,x"), resource(""), Resource::default()] {
        assert!(!needs_network(&resource), "{resource:?}");
    }
}

#[test]
fn secrets_in_sources_are_not_shown() {
    for (source, expected) in [
        ("https://me:pw@h.test:8/p/q?token=x#f", "https://h.test:8/p/q?…"),
        ("tftp://me@h.test/p", "tftp://h.test/p"),
        ("data:,secret", "a data URL"),
        ("", "an empty source"),
        ("secret", "a source that is no URL"),
    ] {
        assert_eq!(shown(source), expected);
    }
}
