//! Binding an encrypted volume to tang servers and the TPM, by `clevis`.

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};

use crate::command;
use crate::ignition::config::types::{Clevis, Resource, Tang};
use crate::ignition::fetch::Fetcher;
use crate::ignition::log::Log;

/// The program, found in `PATH`.
const PROGRAM: &str = "clevis";

/// The largest answer of a tang server that is taken.
const ADVERTISEMENT_LIMIT: usize = 1 << 20;

/// Adds a binding to a volume that `key` opens.
///
/// # Errors
/// When a tang server does not answer, or `clevis` fails.
pub(crate) fn bind(config: &Clevis, device: &str, key: &[u8], fetcher: &Fetcher, log: Log) -> anyhow::Result<()> {
    for tang in without_advertisement(config) {
        // `clevis` asks once; the network may need more patience.
        let source = advertisement_url(tang.url.as_deref().unwrap_or_default())?;
        log.info(format_args!("asking {source}"));
        let resource = Resource { source: Some(source), ..Resource::default() };
        fetcher.fetch(&resource, ADVERTISEMENT_LIMIT).context("fetching the tang server's advertisement")?;
    }
    let (pin, settings) = pin_and_settings(config)?;
    log.info(format_args!("running {PROGRAM} luks bind with the pin {pin}"));
    let arguments = ["luks", "bind", "-f", "-k", "-", "-d", device, &pin, &settings];
    command::run(PROGRAM, &arguments, key, |code| code == 0)?;
    Ok(())
}

/// Opens a volume by its binding.
///
/// # Errors
/// When `clevis` fails.
pub(crate) fn unlock(device: &str, name: &str, log: Log) -> anyhow::Result<()> {
    log.info(format_args!("running {PROGRAM} luks unlock for {name}"));
    command::run(PROGRAM, &["luks", "unlock", "-d", device, "-n", name], b"", |code| code == 0)?;
    Ok(())
}

/// Whether the volume can be unlocked on this machine as it is: servers whose advertisement was given need not be
/// reachable yet.
pub(crate) fn can_unlock_now(config: &Clevis) -> bool {
    let pieces = without_advertisement(config).count() + usize::from(config.tpm2 == Some(true));
    i64::try_from(pieces).is_ok_and(|pieces| pieces >= config.threshold.unwrap_or(1))
}

/// The pin and its settings: those given, else Shamir's secret sharing over all that is named.
fn pin_and_settings(config: &Clevis) -> anyhow::Result<(String, String)> {
    if let Some(custom) = &config.custom
        && let Some(pin) = custom.pin.as_ref().filter(|pin| !pin.is_empty())
    {
        return Ok((pin.clone(), custom.config.clone().context("a clevis pin without its config")?));
    }
    let mut pins = Map::new();
    let tang = config.tang.as_deref().unwrap_or_default();
    if !tang.is_empty() {
        pins.insert("tang".to_owned(), tang.iter().map(tang_pin).collect::<anyhow::Result<Vec<_>>>()?.into());
    }
    if config.tpm2 == Some(true) {
        pins.insert("tpm2".to_owned(), json!({}));
    }
    Ok(("sss".to_owned(), json!({ "pins": pins, "t": config.threshold.unwrap_or(1) }).to_string()))
}

/// The settings of one tang server.
fn tang_pin(tang: &Tang) -> anyhow::Result<Value> {
    let mut pin = Map::new();
    pin.insert("url".to_owned(), tang.url.clone().context("a tang server without a URL")?.into());
    if let Some(thumbprint) = &tang.thumbprint {
        pin.insert("thp".to_owned(), thumbprint.clone().into());
    }
    if let Some(advertisement) = tang.advertisement.as_ref().filter(|text| !text.is_empty()) {
        pin.insert("adv".to_owned(), serde_json::from_str(advertisement).context("parsing a tang advertisement")?);
    }
    Ok(pin.into())
}

/// The servers that have to be asked.
fn without_advertisement(config: &Clevis) -> impl Iterator<Item = &Tang> {
    config.tang.iter().flatten().filter(|tang| tang.advertisement.as_ref().is_none_or(String::is_empty))
}

/// Where a tang server advertises its keys.
fn advertisement_url(server: &str) -> anyhow::Result<String> {
    let mut url = url::Url::parse(server).with_context(|| format!("parsing the tang server's URL {server:?}"))?;
    ensure!(!url.cannot_be_a_base(), "{server:?} is no URL of a server");
    let path = format!("{}/adv", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ignition::config::types::ClevisCustom;

    fn tang(advertisement: Option<&str>) -> Tang {
        Tang {
            url: Some("http://192.0.2.1/base".into()),
            thumbprint: Some("abc".into()),
            advertisement: advertisement.map(str::to_owned),
        }
    }

    #[test]
    fn settings_follow_from_the_config() {
        let custom =
            ClevisCustom { pin: Some("null".into()), config: Some("{\"x\":1}".into()), ..ClevisCustom::default() };
        for (case, config, pin, settings) in [
            ("tpm2", Clevis { tpm2: Some(true), ..Clevis::default() }, "sss", r#"{"pins":{"tpm2":{}},"t":1}"#),
            (
                "tang",
                Clevis { tang: Some(vec![tang(None)]), ..Clevis::default() },
                "sss",
                r#"{"pins":{"tang":[{"thp":"abc","url":"http://192.0.2.1/base"}]},"t":1}"#,
            ),
            (
                "both",
                Clevis {
                    tang: Some(vec![tang(Some("{\"payload\":\"p\"}"))]),
                    tpm2: Some(true),
                    threshold: Some(2),
                    ..Clevis::default()
                },
                "sss",
                r#"{"pins":{"tang":[{"adv":{"payload":"p"},"thp":"abc","url":"http://192.0.2.1/base"}],"tpm2":{}},"t":2}"#,
            ),
            ("custom", Clevis { custom: Some(custom), ..Clevis::default() }, "null", r#"{"x":1}"#),
        ] {
            let (got_pin, got) = pin_and_settings(&config).expect(case);
            let parse = |text: &str| serde_json::from_str::<Value>(text).expect(case);
            assert_eq!((got_pin.as_str(), parse(&got)), (pin, parse(settings)), "{case}");
        }
        let broken = Clevis { tang: Some(vec![tang(Some("{"))]), ..Clevis::default() };
        assert!(pin_and_settings(&broken).is_err(), "an advertisement that is no JSON");
    }

    #[test]
    fn unlocking_is_tried_when_enough_pieces_are_here() {
        for (given, asked, tpm2, threshold, expected) in [
            (0, 1, false, None, true),
            (1, 0, false, None, false),
            (1, 0, true, None, true),
            (1, 1, false, Some(2), false),
            (0, 1, true, Some(2), true),
        ] {
            let tang = [vec![tang(Some("{}")); given], vec![tang(None); asked]].concat();
            let config = Clevis { tang: Some(tang), tpm2: Some(tpm2), threshold, ..Clevis::default() };
            assert_eq!(can_unlock_now(&config), expected, "{given} {asked} {tpm2} {threshold:?}");
        }
    }

    #[test]
    fn advertisements_lie_below_the_servers_path() {
        for (server, expected) in [
            ("http://192.0.2.1", "http://192.0.2.1/adv"),
            ("http://192.0.2.1:7500/", "http://192.0.2.1:7500/adv"),
            ("http://192.0.2.1/base", "http://192.0.2.1/base/adv"),
        ] {
            assert_eq!(advertisement_url(server).expect(server), expected);
        }
        assert!(advertisement_url("no url").is_err());
    }
}
