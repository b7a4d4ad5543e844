//! Host names, without the C library, which a static program cannot use for them.
//!
//! `/etc/resolv.conf` and `/etc/hosts` are read for each question: in the first stage they may come into being between
//! one attempt and the next.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The resolver that the HTTP client is given.
#[derive(Debug)]
pub(super) struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let addresses = lookup(name.as_str()).await?;
            Ok(Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0))) as Addrs)
        })
    }
}

/// The addresses of a host.
///
/// # Errors
/// When there is no resolver to ask, or it knows none.
pub(crate) async fn lookup(name: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    // RFC 6761, section 6.3: no server is asked for this name; an initrd has no /etc/hosts that would say it.
    if name.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let mut builder = TokioResolver::builder_tokio().map_err(|error| format!("reading /etc/resolv.conf: {error}"))?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let found = builder.build().lookup_ip(name).await.map_err(|error| format!("resolving {name}: {error}"))?;
    Ok(found.iter().collect())
}
