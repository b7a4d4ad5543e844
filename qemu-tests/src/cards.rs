//! A machine's network cards, and QEMU's arguments for them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::machine::join;

/// The machine's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// No card.
    None,
    /// A virtio card; the guest reaches the host's loopback at 10.0.2.2.
    User {
        /// TCP ports: the host's on loopback, and the guest's that it leads to.
        forwards: Vec<(u16, u16)>,
    },
    /// Several virtio cards. The addresses end in 01, 02 and so on; the monitor knows them as `net0`, `net1` and so on.
    Cards(Vec<Card>),
}

/// Where the cable of a card leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Card {
    /// To QEMU's user network: TCP ports as for [`Network::User`].
    User(Vec<(u16, u16)>),
    /// To a port of a [`crate::wire::Wire`].
    Wire(PathBuf),
    /// To the user network by way of a [`crate::wire::Link`], which makes these.
    Link {
        /// The link's end for the card.
        near: PathBuf,
        /// Its end for the user network.
        far: PathBuf,
        /// TCP ports as for [`Network::User`].
        forwards: Vec<(u16, u16)>,
    },
}

impl Card {
    /// QEMU's options and their values for the card that is `index`-th of its machine: its cable, and itself.
    pub(crate) fn args(&self, index: usize) -> Vec<(&'static str, OsString)> {
        let cables = match self {
            Card::User(forwards) => vec![user("net", index, forwards)],
            Card::Wire(port) => vec![stream("net", index, port)],
            Card::Link { near, far, forwards } => vec![
                user("user", index, forwards),
                stream("far", index, far),
                hubport("user", index),
                hubport("far", index),
                stream("net", index, near),
            ],
        };
        let number = index + 1;
        let card = format!("virtio-net-pci,netdev=net{index},mac=52:54:00:4e:5a:{number:02x},romfile=");
        let cables = cables.into_iter().map(|cable| ("-netdev", cable));
        cables.chain([("-device", card.into())]).collect()
    }
}

/// The user network.
fn user(id: &str, index: usize, forwards: &[(u16, u16)]) -> OsString {
    let forwards = forwards.iter().map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    format!("user,id={id}{index}{}", forwards.collect::<String>()).into()
}

/// A cable to a socket.
fn stream(id: &str, index: usize, socket: &Path) -> OsString {
    join(&format!("stream,id={id}{index},server=off,addr.type=unix,addr.path="), socket)
}

/// A port of the card's hub, with another network's cable in it.
fn hubport(id: &str, index: usize) -> OsString {
    format!("hubport,id=hub-{id}{index},hubid={index},netdev={id}{index}").into()
}

impl Network {
    /// The cards, in order.
    pub(crate) fn cards(&self) -> Vec<Card> {
        match self {
            Network::None => Vec::new(),
            Network::User { forwards } => vec![Card::User(forwards.clone())],
            Network::Cards(cards) => cards.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_cards() {
        let link = Card::Link { near: "/t/near".into(), far: "/t/a,b/far".into(), forwards: vec![(46443, 6443)] };
        let network = Network::Cards(vec![Card::Wire("/t/a,b/port0".into()), Card::User(vec![(40022, 22)]), link]);
        let args = network.cards().into_iter().enumerate().flat_map(|(at, card)| card.args(at));
        let args: Vec<String> = args.map(|(option, value)| format!("{option} {}", value.display())).collect();
        let expected = [
            "-netdev stream,id=net0,server=off,addr.type=unix,addr.path=/t/a,,b/port0",
            "-device virtio-net-pci,netdev=net0,mac=52:54:00:4e:5a:01,romfile=",
            "-netdev user,id=net1,hostfwd=tcp:127.0.0.1:40022-:22",
            "-device virtio-net-pci,netdev=net1,mac=52:54:00:4e:5a:02,romfile=",
            "-netdev user,id=user2,hostfwd=tcp:127.0.0.1:46443-:6443",
            "-netdev stream,id=far2,server=off,addr.type=unix,addr.path=/t/a,,b/far",
            "-netdev hubport,id=hub-user2,hubid=2,netdev=user2",
            "-netdev hubport,id=hub-far2,hubid=2,netdev=far2",
            "-netdev stream,id=net2,server=off,addr.type=unix,addr.path=/t/near",
            "-device virtio-net-pci,netdev=net2,mac=52:54:00:4e:5a:03,romfile=",
        ];
        assert_eq!(args, expected);
    }
}
