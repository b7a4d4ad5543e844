//! Which proxy a URL is fetched through.
//!
//! A config's `ignition.proxy` counts as a whole where it names a proxy, else the environment's variables do. As the
//! specification says, `httpProxy` is for `https` too unless `httpsProxy` is given; of the environment each variable
//! counts for its own scheme alone. `localhost` and loopback addresses are never fetched through a proxy.
//!
//! Specification: `ignition.proxy` in [configuration v3.5](https://coreos.github.io/ignition/configuration-v3_5/).

use std::net::IpAddr;

use anyhow::Context;
use url::{Host, Url};

use crate::ignition::config::types::Proxy;
use crate::ignition::environment::Network;

/// The proxies, and what is fetched without them.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

/// Hosts that are fetched from directly.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    Everything,
    Network {
        address: IpAddr,
        prefix: u8,
        port: Option<u16>,
    },
    /// In lower case, without a leading dot.
    Domain {
        name: String,
        subdomains_only: bool,
        port: Option<u16>,
    },
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A proxy's URL may hold a password.
        write!(f, "Proxies {{ http: {}, https: {} }}", self.http.is_some(), self.https.is_some())
    }
}

impl Proxies {
    /// # Errors
    /// When a proxy is not an `http` or `https` URL.
    pub(super) fn of(config: Option<&Proxy>, environment: &Network) -> anyhow::Result<Self> {
        let named = config.filter(|config| config.http_proxy.is_some() || config.https_proxy.is_some());
        let given = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let (http, https, exceptions, whose) = match named {
            Some(config) => {
                let (http, https) = (given(&config.http_proxy), given(&config.https_proxy));
                let exceptions = config.no_proxy.clone().unwrap_or_default();
                (http.clone(), https.or(http), exceptions, "ignition.proxy")
            }
            None => {
                let exceptions = environment.no_proxy.as_deref().unwrap_or_default();
                let exceptions = exceptions.split(',').map(str::to_owned).collect();
                (given(&environment.http_proxy), given(&environment.https_proxy), exceptions, "the environment")
            }
        };
        let url = |text: Option<String>| match text {
            Some(text) => parse(&text).with_context(|| format!("reading the proxies of {whose}")).map(Some),
            None => Ok(None),
        };
        Ok(Self {
            http: url(http)?,
            https: url(https)?,
            exceptions: exceptions.iter().filter_map(|text| Exception::parse(text)).collect(),
        })
    }

    /// The proxy for a URL.
    pub(super) fn for_url(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        };
        let host = url.host()?;
        if is_loopback(&host) || self.exceptions.iter().any(|exception| exception.covers(&host, url)) {
            return None;
        }
        proxy.cloned()
    }
}

/// A proxy's URL; `host:port` alone is taken as `http`, as is the custom in the environment.
fn parse(text: &str) -> anyhow::Result<Url> {
    let with_scheme = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let url = Url::parse(&with_scheme).context("reading a proxy's URL")?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "a proxy's URL has the scheme {}", url.scheme());
    Ok(url)
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

impl Exception {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self::Everything);
        }
        if let Some((address, prefix)) = text.split_once('/')
            && let (Ok(address), Ok(prefix)) = (address.parse::<IpAddr>(), prefix.parse::<u8>())
        {
            return Some(Self::Network { address, prefix, port: None });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Some(Self::Network { address, prefix: 128, port: None });
        }
        let (host, port) = match text.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            Some((host, Ok(port))) => (host, Some(port)),
            Some((_, Err(_))) | None => (text.as_str(), None),
        };
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Some(Self::Network { address, prefix: 128, port });
        }
        let host = host.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(host);
        let name = host.trim_start_matches('.').to_owned();
        Some(Self::Domain { subdomains_only: host.starts_with('.'), name, port })
    }

    fn covers(&self, host: &Host<&str>, url: &Url) -> bool {
        let port_fits = |port: &Option<u16>| port.is_none_or(|port| url.port_or_known_default() == Some(port));
        let address = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(*address)),
            Host::Ipv6(address) => Some(IpAddr::V6(*address)),
            Host::Domain(_) => None,
        };
        match self {
            Self::Everything => true,
            Self::Network { address: network, prefix, port } => {
                port_fits(port) && address.is_some_and(|address| within(address, *network, *prefix))
            }
            Self::Domain { name, subdomains_only, port } => {
                let Host::Domain(host) = host else { return false };
                let host = host.trim_end_matches('.');
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                port_fits(port) && (below || (!subdomains_only && host == name))
            }
        }
    }
}

/// Whether an address lies in a network; a prefix longer than the address is the address alone.
fn within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let same = |address: u128, network: u128, bits: u32| {
        let shift = bits - u32::from(prefix).min(bits);
        address.checked_shr(shift).unwrap_or(0) == network.checked_shr(shift).unwrap_or(0)
    };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => same(address.to_bits().into(), network.to_bits().into(), 32),
        (IpAddr::V6(address), IpAddr::V6(network)) => same(address.to_bits(), network.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(http: Option<&str>, https: Option<&str>, no: Option<&str>) -> Network {
        Network {
            http_proxy: http.map(str::to_owned),
            https_proxy: https.map(str::to_owned),
            no_proxy: no.map(str::to_owned),
            authorities: "/nonexistent".into(),
        }
    }

    fn config(http: Option<&str>, https: Option<&str>, no: &[&str]) -> Proxy {
        Proxy {
            http_proxy: http.map(str::to_owned),
            https_proxy: https.map(str::to_owned),
            no_proxy: Some(no.iter().map(|&no| no.to_owned()).collect()),
        }
    }

    #[test]
    fn the_config_counts_before_the_environment() {
        let none = environment(None, None, None);
        let both = environment(Some("http://eh:1"), Some("http://es:2"), Some("y.test"));
        for (case, config, environment, url, expected) in [
            ("nothing", None, &none, "http://x.test/", None),
            ("environment", None, &both, "http://x.test/", Some("http://eh:1/")),
            ("environment, https", None, &both, "https://x.test/", Some("http://es:2/")),
            ("environment, exception", None, &both, "http://y.test/", None),
            ("not of the other scheme", None, &environment(Some("eh:1"), None, None), "https://x.test/", None),
            ("without a scheme", None, &environment(Some("eh:1"), None, None), "http://x.test/", Some("http://eh:1/")),
            ("config", Some(config(Some("http://ch:3"), None, &[])), &both, "http://y.test/", Some("http://ch:3/")),
            (
                "for https too",
                Some(config(Some("http://ch:3"), None, &[])),
                &both,
                "https://x.test/",
                Some("http://ch:3/"),
            ),
            (
                "unless that is named",
                Some(config(Some("http://ch:3"), Some("https://cs:4"), &[])),
                &both,
                "https://x.test/",
                Some("https://cs:4/"),
            ),
            ("https alone", Some(config(None, Some("https://cs:4"), &[])), &both, "http://x.test/", None),
            ("names none", Some(config(None, None, &["x.test"])), &both, "http://x.test/", Some("http://eh:1/")),
        ] {
            let proxies = Proxies::of(config.as_ref(), environment).expect(case);
            let url = Url::parse(url).expect(case);
            assert_eq!(proxies.for_url(&url).map(String::from).as_deref(), expected, "{case}");
        }
    }

    #[test]
    fn exceptions_cover_what_the_specification_says() {
        for (exception, url, direct) in [
            ("foo.com", "http://foo.com/", true),
            ("foo.com", "http://bar.foo.com/", true),
            ("foo.com", "http://barfoo.com/", false),
            ("FOO.com", "http://foo.COM/", true),
            (".y.com", "http://x.y.com/", true),
            (".y.com", "http://y.com/", false),
            ("*.y.com", "http://x.y.com/", true),
            ("*.y.com", "http://y.com/", false),
            ("foo.com:80", "http://foo.com/", true),
            ("foo.com:80", "http://foo.com:81/", false),
            ("1.2.3.4", "http://1.2.3.4/", true),
            ("1.2.3.4", "http://1.2.3.5/", false),
            ("1.2.3.4:80", "http://1.2.3.4:80/", true),
            ("1.2.3.4:80", "https://1.2.3.4/", false),
            ("1.2.3.4/8", "http://1.9.9.9/", true),
            ("1.2.3.4/8", "http://2.2.3.4/", false),
            ("0.0.0.0/0", "http://2.2.3.4/", true),
            ("fd00::/8", "http://[fd12::1]/", true),
            ("fd00::/8", "http://[fe80::1]/", false),
            ("::/0", "http://[fe80::1]/", true),
            ("::/0", "http://1.2.3.4/", false),
            ("fd00::1", "http://[fd00::1]/", true),
            ("[fd00::1]:80", "http://[fd00::1]/", true),
            ("[fd00::1]:80", "http://[fd00::1]:81/", false),
            ("*", "http://any.test/", true),
            ("", "http://any.test/", false),
            ("other.test", "http://localhost/", true),
            ("other.test", "http://127.0.0.2:8080/", true),
            ("other.test", "http://[::1]/", true),
        ] {
            let config = config(Some("http://proxy.test:3128"), None, &[exception]);
            let proxies = Proxies::of(Some(&config), &environment(None, None, None)).expect("parses");
            let url = Url::parse(url).expect("a URL");
            assert_eq!(proxies.for_url(&url).is_none(), direct, "{exception:?} {url}");
        }
    }

    #[test]
    fn a_proxy_of_another_kind_is_refused_and_its_password_not_shown() {
        let config = config(Some("socks5://me:secret@h:1"), None, &[]);
        let error = Proxies::of(Some(&config), &environment(None, None, None)).expect_err("socks5");
        let text = format!("{error:#} {error:?}");
        assert!(text.contains("scheme socks5") && !text.contains("secret"), "{text}");
    }
}
