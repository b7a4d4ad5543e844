//! User data from the metadata service of a provider.
//!
//! | provider | documented at |
//! |---|---|
//! | Akamai | [Use the Metadata service API](https://techdocs.akamai.com/cloud-computing/docs/metadata-service-api) |
//! | DigitalOcean | [Metadata API](https://docs.digitalocean.com/reference/api/metadata/) |
//! | EC2 | [Use the Instance Metadata Service](https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html) |
//! | Google | [View and query VM metadata](https://cloud.google.com/compute/docs/metadata/querying-metadata) |
//! | Hetzner | [Server metadata](https://docs.hetzner.cloud/#server-metadata) |
//! | OpenStack | [Metadata service](https://docs.openstack.org/nova/latest/admin/metadata-service.html) |
//! | Scaleway | [User data](https://www.scaleway.com/en/developers/api/instance/user-data) |
//! | Vultr | [Metadata API](https://www.vultr.com/metadata/), [user data](https://www.vultr.com/docs/manage-instance-user-data-with-the-vultr-metadata-api/) |
//!
//! They differ in a path, a few headers, and whether a token must be asked for first; that is a table here. On Google
//! the user data are the instance's attribute `user-data`, on Scaleway the key `cloud-init`, as for Ignition.
//!
//! Answers: 200 with something is the user data; 200 with nothing, 204 and 404 mean that there are none; 429, 5xx, and
//! no answer at all are tried again, with pauses that double, until the patience is at an end; a token that is refused
//! (401) is replaced once; anything else is an error at once. Left out: EC2's first version without token, addresses
//! that are link-local in IPv6, Azure, Oracle.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::content::{self, LIMIT};
use super::exchange::{AskError, Question, Reply, ask};
use super::identity::Provider;

/// The largest token, in bytes. EC2's have 56.
const TOKEN_LIMIT: u64 = 4096;
/// The port of metadata services.
const PORT: u16 = 80;

/// How long is waited for a service that is known to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Patience {
    /// For all attempts together.
    pub(crate) total: Duration,
    /// For one attempt.
    pub(crate) attempt: Duration,
    /// The pause after the first attempt; each later one is twice as long.
    pub(crate) first_pause: Duration,
    /// The longest pause.
    pub(crate) longest_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(300),
            attempt: Duration::from_secs(20),
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(10),
        }
    }
}

/// A provider's way of giving user data.
#[derive(Clone, Copy, Debug)]
struct Protocol {
    /// Where the service is, asked in turn: a machine has a route to one of them at least.
    addresses: &'static [IpAddr],
    /// Where the user data are. A later path is asked when an earlier one has none.
    paths: &'static [&'static str],
    headers: &'static [(&'static str, &'static str)],
    token: Option<TokenProtocol>,
    from_low_port: bool,
    is_base64: bool,
}

/// How a token is had.
#[derive(Clone, Copy, Debug)]
struct TokenProtocol {
    /// Where one is asked for, with `PUT`.
    path: &'static str,
    /// The header that says how long it shall live, in seconds.
    lifetime: (&'static str, &'static str),
    /// The header that shows it.
    header: &'static str,
}

const LINK_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// An address of IPv6 by its eight groups.
const fn v6([a, b, c, d, e, f, g, h]: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h))
}

/// What providers have in common.
const PLAIN: Protocol = Protocol {
    addresses: &[LINK_LOCAL],
    paths: &[],
    headers: &[],
    token: None,
    from_low_port: false,
    is_base64: false,
};

/// A provider's protocol.
fn protocol(provider: Provider) -> Protocol {
    match provider {
        Provider::Akamai => Protocol {
            addresses: const { &[LINK_LOCAL, v6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1])] },
            paths: &["/v1/user-data"],
            headers: &[("accept", "text/plain")],
            token: Some(TokenProtocol {
                path: "/v1/token",
                lifetime: ("metadata-token-expiry-seconds", "300"),
                header: "metadata-token",
            }),
            is_base64: true,
            ..PLAIN
        },
        Provider::Digitalocean => Protocol { paths: &["/metadata/v1/user-data"], ..PLAIN },
        Provider::Ec2 => Protocol {
            addresses: const { &[LINK_LOCAL, v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254])] },
            paths: &["/latest/user-data"],
            token: Some(TokenProtocol {
                path: "/latest/api/token",
                lifetime: ("x-aws-ec2-metadata-token-ttl-seconds", "300"),
                header: "x-aws-ec2-metadata-token",
            }),
            ..PLAIN
        },
        Provider::Gcp => Protocol {
            paths: &["/computeMetadata/v1/instance/attributes/user-data"],
            headers: &[("metadata-flavor", "Google")],
            ..PLAIN
        },
        Provider::Hetzner => Protocol { paths: &["/hetzner/v1/userdata"], ..PLAIN },
        Provider::Openstack => Protocol { paths: &["/openstack/latest/user_data"], ..PLAIN },
        Provider::Scaleway => Protocol {
            addresses: const { &[IpAddr::V4(Ipv4Addr::new(169, 254, 42, 42)), v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42])] },
            paths: &["/user_data/cloud-init"],
            from_low_port: true,
            ..PLAIN
        },
        // The page on user data has the first, Ignition asks at the second.
        Provider::Vultr => Protocol { paths: &["/latest/user-data", "/user-data/user-data"], ..PLAIN },
    }
}

/// Why an attempt gave nothing.
#[derive(Debug)]
enum Fault {
    /// It may go away.
    Passing(anyhow::Error),
    /// The token is not taken, any more.
    Unauthorized(anyhow::Error),
    /// It stays.
    Final(anyhow::Error),
}

/// Asks a provider for the user data; `None` when it says that there are none. `address` is asked in place of the
/// provider's own.
///
/// # Errors
/// When the service does not answer within the patience, or answers what is no Ignition config. Secrets are in none.
pub(crate) fn user_data(
    provider: Provider,
    address: Option<SocketAddr>,
    patience: Patience,
    say: &dyn Fn(&str),
) -> anyhow::Result<Option<Vec<u8>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.context("preparing for network traffic")?;
    let fetched = runtime.block_on(fetch(provider, address, patience, say));
    let raw = fetched.with_context(|| format!("asking the metadata service of {provider}"))?;
    let decode = |raw: Vec<u8>| {
        let raw = if protocol(provider).is_base64 { decode_base64(raw)? } else { raw };
        content::user_data(raw)
    };
    match raw {
        Some(raw) => decode(raw).with_context(|| format!("reading the user data of {provider}")),
        None => Ok(None),
    }
}

/// Tries until there is an answer.
async fn fetch(
    provider: Provider,
    address: Option<SocketAddr>,
    patience: Patience,
    say: &dyn Fn(&str),
) -> anyhow::Result<Option<Vec<u8>>> {
    let protocol = protocol(provider);
    let own: Vec<SocketAddr> = protocol.addresses.iter().map(|&ip| SocketAddr::new(ip, PORT)).collect();
    let addresses = address.map_or(own, |address| vec![address]);
    let begun = Instant::now();
    let left = || patience.total.saturating_sub(begun.elapsed());
    let (mut token, mut is_renewed, mut pause) = (None, false, patience.first_pause);
    for (attempt, &address) in (1..).zip(addresses.iter().cycle()) {
        let bound = patience.attempt.min(left());
        let fault = match timeout(bound, try_once(&protocol, address, &mut token)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(fault)) => fault,
            Err(_) => Fault::Passing(anyhow::anyhow!("{address} gave no answer within {} ms", bound.as_millis())),
        };
        let error = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Unauthorized(error) if is_renewed => return Err(error),
            Fault::Unauthorized(_) => {
                (token, is_renewed) = (None, true);
                continue;
            }
            Fault::Passing(error) => error,
        };
        // An attempt that is cut short would tell of itself, and not of what is wrong.
        if left() <= pause + patience.attempt / 4 {
            let took = begun.elapsed().as_secs();
            return Err(error.context(format!("no user data after {attempt} attempts in {took} s")));
        }
        say(&format!("nodezero: metadata service of {provider}: {error:#}; next attempt in {} ms", pause.as_millis()));
        sleep(pause).await;
        pause = (pause * 2).min(patience.longest_pause);
    }
    unreachable!("every provider has an address, and attempts are counted without end")
}

/// One attempt: a token if one is needed and not there, then the paths in turn.
async fn try_once(
    protocol: &Protocol,
    address: SocketAddr,
    token: &mut Option<HeaderValue>,
) -> Result<Option<Vec<u8>>, Fault> {
    let mut headers: Vec<_> =
        protocol.headers.iter().map(|&(name, value)| (name, HeaderValue::from_static(value))).collect();
    if let Some(wanted) = protocol.token {
        let token = match token {
            Some(token) => token.clone(),
            None => token.insert(ask_token(protocol, wanted, address).await?).clone(),
        };
        headers.push((wanted.header, token));
    }
    for &path in protocol.paths {
        let question =
            Question { method: Method::GET, path, headers: headers.clone(), from_low_port: protocol.from_low_port };
        let reply = exchange(address, &question, LIMIT).await?;
        match reply.status {
            StatusCode::OK => return Ok(Some(reply.body)),
            StatusCode::NOT_FOUND | StatusCode::NO_CONTENT => {}
            other => return Err(refused(&question, other, protocol.token.is_some())),
        }
    }
    Ok(None)
}

/// Asks for a token.
async fn ask_token(protocol: &Protocol, wanted: TokenProtocol, address: SocketAddr) -> Result<HeaderValue, Fault> {
    let (name, lifetime) = wanted.lifetime;
    let mut headers: Vec<_> =
        protocol.headers.iter().map(|&(name, value)| (name, HeaderValue::from_static(value))).collect();
    headers.push((name, HeaderValue::from_static(lifetime)));
    let question = Question { method: Method::PUT, path: wanted.path, headers, from_low_port: protocol.from_low_port };
    let reply = exchange(address, &question, TOKEN_LIMIT).await?;
    if reply.status != StatusCode::OK {
        return Err(refused(&question, reply.status, false));
    }
    let token = reply.body.trim_ascii();
    let mut value = HeaderValue::from_bytes(token)
        .ok()
        .filter(|_| !token.is_empty())
        .ok_or_else(|| Fault::Final(anyhow::anyhow!("PUT {}: the answer is no token", wanted.path)))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Asks, and sorts what can go wrong.
async fn exchange(address: SocketAddr, question: &Question, limit: u64) -> Result<Reply, Fault> {
    ask(address, question, limit).await.map_err(|error| {
        let is_final = match &error {
            AskError::LowPort(_) | AskError::TooLarge(_) | AskError::Request(_) => true,
            AskError::Connect(_) | AskError::Exchange(_) => false,
        };
        let error = anyhow::Error::new(error).context(format!("{} {} at {address}", question.method, question.path));
        if is_final { Fault::Final(error) } else { Fault::Passing(error) }
    })
}

/// What a status means that is no answer.
fn refused(question: &Question, status: StatusCode, has_token: bool) -> Fault {
    let error = anyhow::anyhow!("{} {} was answered with status {}", question.method, question.path, status.as_u16());
    if status == StatusCode::UNAUTHORIZED && has_token {
        Fault::Unauthorized(error.context("the service takes not even a new token"))
    } else if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        Fault::Passing(error)
    } else {
        Fault::Final(error)
    }
}

/// Decodes base64, which may be broken into lines.
fn decode_base64(mut raw: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    raw.retain(|byte| !byte.is_ascii_whitespace());
    BASE64_STANDARD.decode(raw).map_err(|_| anyhow::anyhow!("the answer is not in base64"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::mock::{Answer, Mock, Seen};
    use super::*;

    const CONFIG: &[u8] = b"{\"ignition\":{\"version\":\"3.4.0\"}}";
    const EVERY: [Provider; 8] = [
        Provider::Akamai,
        Provider::Digitalocean,
        Provider::Ec2,
        Provider::Gcp,
        Provider::Hetzner,
        Provider::Openstack,
        Provider::Scaleway,
        Provider::Vultr,
    ];
    const QUICK: Patience = Patience {
        total: Duration::from_secs(20),
        attempt: Duration::from_secs(5),
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(4),
    };

    fn say(status: u16, body: &[u8]) -> Answer {
        Answer::Say(status, body.to_vec())
    }

    /// The service as its provider documents it, written down without the table above. `stored` is what a user gave.
    fn service(provider: Provider, stored: Option<&[u8]>, seen: &Seen) -> Answer {
        let data = stored.map_or(say(404, b"not found"), |data| say(200, data));
        let lifetime =
            |name: &str| seen.header(name).parse::<u32>().is_ok_and(|seconds| (1..=21_600).contains(&seconds));
        match (provider, seen.line.as_str()) {
            (Provider::Akamai, "PUT /v1/token") if lifetime("metadata-token-expiry-seconds") => say(200, b"token-a"),
            (Provider::Akamai, "GET /v1/user-data") if seen.header("metadata-token") == "token-a" => {
                let lines = BASE64_STANDARD.encode(stored.unwrap_or_default()) + "\n";
                say(200, lines.as_bytes())
            }
            (Provider::Akamai, "GET /v1/user-data") => say(401, b""),
            (Provider::Digitalocean, "GET /metadata/v1/user-data") => data,
            (Provider::Ec2, "PUT /latest/api/token") if lifetime("x-aws-ec2-metadata-token-ttl-seconds") => {
                say(200, b"token-b==")
            }
            (Provider::Ec2, "GET /latest/user-data") if seen.header("x-aws-ec2-metadata-token") == "token-b==" => data,
            (Provider::Ec2, "GET /latest/user-data") => say(401, b""),
            (Provider::Gcp, "GET /computeMetadata/v1/instance/attributes/user-data") => {
                if seen.header("metadata-flavor") == "Google" { data } else { say(403, b"Missing Metadata-Flavor") }
            }
            (Provider::Hetzner, "GET /hetzner/v1/userdata") => data,
            (Provider::Openstack, "GET /openstack/latest/user_data") => data,
            (Provider::Scaleway, "GET /user_data/cloud-init") => {
                if seen.port < 1024 {
                    data
                } else {
                    say(403, b"unprivileged port")
                }
            }
            (Provider::Vultr, "GET /latest/user-data") => data,
            (_, line) if line.starts_with("PUT") => say(400, b""),
            (_, _) => say(404, b""),
        }
    }

    fn ask(provider: Provider, mock: &Mock, patience: Patience) -> anyhow::Result<Option<Vec<u8>>> {
        user_data(provider, Some(mock.address), patience, &|_| {})
    }

    /// Whether a provider can be asked from here; a port below 1024 is root's.
    fn can_ask(provider: Provider) -> bool {
        let can = provider != Provider::Scaleway || rustix::process::geteuid().is_root();
        if !can {
            eprintln!("skipped: {provider} needs a port below 1024, and that root");
        }
        can
    }

    #[test]
    fn every_provider_delivers_user_data_by_its_protocol() {
        for provider in EVERY.into_iter().filter(|&provider| can_ask(provider)) {
            let gzip = content::tests::gzip(CONFIG);
            for (case, stored, expected) in
                [("a config", Some(CONFIG), Some(CONFIG)), ("gzip", Some(&gzip), Some(CONFIG)), ("none", None, None)]
            {
                let stored = stored.map(<[u8]>::to_vec);
                let mock = Mock::start(move |seen| service(provider, stored.as_deref(), seen));
                let found = ask(provider, &mock, QUICK).unwrap_or_else(|error| panic!("{provider}, {case}: {error:#}"));
                assert_eq!(found.as_deref(), expected, "{provider}, {case}");
                for seen in mock.seen() {
                    assert_eq!(seen.header("host"), mock.address.to_string(), "{provider}, {case}");
                    assert!(seen.header("user-agent").starts_with("NodeZero/"), "{provider}, {case}");
                    let length = if seen.line.starts_with("PUT") { "0" } else { "" };
                    assert_eq!(seen.header("content-length"), length, "{provider}, {case}");
                }
            }
        }
    }

    #[test]
    fn what_the_mocks_refuse_shows() {
        // Each of these speaks another provider's protocol, so that each header and token above is proven to be needed.
        for (asked, spoken, expected) in [
            (Provider::Hetzner, Provider::Digitalocean, None),
            (Provider::Ec2, Provider::Akamai, Some("PUT /latest/api/token was answered with status 400")),
            (Provider::Akamai, Provider::Hetzner, Some("PUT /v1/token was answered with status 400")),
        ] {
            let mock = Mock::start(move |seen| service(spoken, Some(CONFIG), seen));
            let error = ask(asked, &mock, QUICK).map_err(|error| format!("{error:#}"));
            match expected {
                None => assert_eq!(error, Ok(None), "{asked}"),
                Some(expected) => assert!(error.as_ref().is_err_and(|error| error.ends_with(expected)), "{error:?}"),
            }
        }
        let seen = |line: &str| Seen { line: line.into(), headers: [].into(), port: 40_000 };
        for (provider, line, expected) in [
            (Provider::Akamai, "GET /v1/user-data", 401),
            (Provider::Ec2, "GET /latest/user-data", 401),
            (Provider::Gcp, "GET /computeMetadata/v1/instance/attributes/user-data", 403),
            (Provider::Scaleway, "GET /user_data/cloud-init", 403),
        ] {
            let answer = service(provider, Some(CONFIG), &seen(line));
            assert!(matches!(answer, Answer::Say(status, _) if status == expected), "{provider}: {answer:?}");
        }
    }

    #[test]
    fn vultr_has_two_places() {
        let mock = Mock::start(|seen| match seen.line.as_str() {
            "GET /user-data/user-data" => say(200, CONFIG),
            _ => say(404, b""),
        });
        assert_eq!(ask(Provider::Vultr, &mock, QUICK).expect("found").as_deref(), Some(CONFIG));
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for (case, first) in [
            ("500", say(500, b"")),
            ("503", say(503, b"")),
            ("429", say(429, b"")),
            ("closed", Answer::Close),
            ("no HTTP", Answer::Rubbish),
            ("hangs", Answer::Hang),
            ("hangs in the body", Answer::HangInBody),
        ] {
            let is_silent = matches!(first, Answer::Hang | Answer::HangInBody);
            let count = AtomicUsize::new(0);
            let mock = Mock::start(move |_| match count.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => first.clone(),
                _ => say(200, CONFIG),
            });
            let told = RefCell::new(Vec::new());
            let attempt = if is_silent { Duration::from_millis(700) } else { QUICK.attempt };
            let patience = Patience { attempt, ..QUICK };
            let tell = |line: &str| told.borrow_mut().push(line.to_owned());
            let found = user_data(Provider::Hetzner, Some(mock.address), patience, &tell);
            assert_eq!(found.expect(case).as_deref(), Some(CONFIG), "{case}");
            assert_eq!((mock.seen().len(), told.borrow().len()), (3, 2), "{case}: {told:?}");
            let told = told.borrow();
            assert!(told[0].starts_with("nodezero: metadata service of hetzner: "), "{case}: {told:?}");
            assert!(told[1].ends_with("; next attempt in 2 ms"), "{case}: {told:?}");
        }
    }

    #[test]
    fn patience_ends() {
        let short = Patience {
            total: Duration::from_millis(1500),
            attempt: Duration::from_millis(600),
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(40),
        };
        // Here every attempt has two seconds at least, so that a busy machine shows no other error.
        let quick = Patience { total: Duration::from_secs(3), attempt: Duration::from_secs(8), ..short };
        for (case, patience, answer, expected) in [
            ("hangs", short, Answer::Hang, "gave no answer within"),
            ("hangs in the body", short, Answer::HangInBody, "gave no answer within"),
            ("500", quick, say(500, b""), "GET /metadata/v1/user-data was answered with status 500"),
        ] {
            let mock = Mock::start(move |_| answer.clone());
            let begun = std::time::Instant::now();
            let error = format!("{:#}", ask(Provider::Digitalocean, &mock, patience).expect_err(case));
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(5), "{case}: {took:?}");
            assert!(!error.contains(" after 1 attempts"), "{case}: {error}");
            let start = "asking the metadata service of digitalocean: no user data after ";
            assert!(error.starts_with(start) && error.contains(expected), "{case}: {error}");
        }
        // The port is taken, but nobody listens there.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("loopback");
        let address = socket.local_addr().expect("bound");
        let error = user_data(Provider::Hetzner, Some(address), quick, &|_| {}).expect_err("refused");
        let error = format!("{error:#}");
        assert!(error.contains(&format!("at {address}: connecting: Connection refused")), "{error}");
    }

    #[test]
    fn what_stays_is_an_error_at_once() {
        let large = vec![b' '; LIMIT as usize + 1];
        for (case, answer, expected) in [
            ("403", say(403, b"secret"), "GET /hetzner/v1/userdata was answered with status 403"),
            ("401 without a token", say(401, b""), "was answered with status 401"),
            ("a redirect", say(302, b""), "was answered with status 302"),
            ("too large", say(200, &large), "the answer is larger than 16777216 bytes"),
            ("broken gzip", say(200, &[0x1f, 0x8b, 8, 0]), "of hetzner: decompressing the user data: "),
            ("cloud-config", say(200, b"#cloud-config\n"), "is a cloud-config: NodeZero takes Ignition configs alone"),
            ("a script", say(200, b"#!/bin/sh\n"), "is a script: NodeZero takes Ignition configs alone"),
        ] {
            let mock = Mock::start(move |_| answer.clone());
            let error = format!("{:#}", ask(Provider::Hetzner, &mock, QUICK).expect_err(case));
            assert!(error.contains(expected) && !error.contains("secret"), "{case}: {error}");
            assert_eq!(mock.seen().len(), 1, "{case}");
        }
        let mock = Mock::start(|seen| match seen.line.as_str() {
            "PUT /v1/token" => say(200, b"t"),
            _ => say(200, b"{\"not\": \"base64\"}"),
        });
        let error = format!("{:#}", ask(Provider::Akamai, &mock, QUICK).expect_err("no base64"));
        assert_eq!(error, "reading the user data of akamai: the answer is not in base64");
    }

    #[test]
    fn nothing_is_no_user_data() {
        for (case, answer) in [("404", say(404, b"x")), ("204", say(204, b"")), ("empty", say(200, b""))] {
            let mock = Mock::start(move |_| answer.clone());
            assert_eq!(ask(Provider::Openstack, &mock, QUICK).expect(case), None, "{case}");
            assert_eq!(mock.seen().len(), 1, "{case}");
        }
    }

    #[test]
    fn a_token_that_is_refused_is_replaced_once() {
        for (case, good, requests, is_found) in
            [("expired", "token-2", 4, true), ("never taken", "none", 4, false), ("good", "token-1", 2, true)]
        {
            let tokens = AtomicUsize::new(0);
            let mock = Mock::start(move |seen| {
                if seen.line.starts_with("PUT") {
                    let number = tokens.fetch_add(1, Ordering::Relaxed) + 1;
                    return say(200, format!("token-{number}").as_bytes());
                }
                let is_good = seen.header("x-aws-ec2-metadata-token") == good;
                if is_good { say(200, CONFIG) } else { say(401, b"") }
            });
            let found = ask(Provider::Ec2, &mock, QUICK);
            assert_eq!(mock.seen().len(), requests, "{case}");
            match found {
                Ok(found) => assert_eq!((found.as_deref(), is_found), (Some(CONFIG), true), "{case}"),
                Err(error) => {
                    let error = format!("{error:#}");
                    assert!(!is_found && error.contains("not even a new token"), "{case}: {error}");
                    assert!(error.ends_with("GET /latest/user-data was answered with status 401"), "{case}: {error}");
                    assert!(!error.contains("token-"), "{case}: {error}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_token_is_not_sent() {
        for (case, token) in [("empty", &b" \n"[..]), ("two lines", b"a\r\nx: y"), ("too large", &[b'a'; 5000])] {
            let token = token.to_vec();
            let mock = Mock::start(move |_| say(200, &token));
            assert!(ask(Provider::Ec2, &mock, QUICK).is_err(), "{case}");
            assert_eq!(mock.seen().len(), 1, "{case}");
        }
    }
}
