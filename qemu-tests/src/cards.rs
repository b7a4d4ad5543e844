//! A machine's network cards, and QEMU's arguments for them.

use std::ffi::OsString;
use std::path::PathBuf;

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
}

impl Card {
    /// QEMU's options for the card that is `index`-th of its machine: its cable, and itself.
    pub(crate) fn args(&self, index: usize) -> [OsString; 2] {
        let cable = match self {
            Card::User(forwards) => {
                let forwards = forwards.iter().map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
                format!("user,id=net{index}{}", forwards.collect::<String>()).into()
            }
            Card::Wire(port) => join(&format!("stream,id=net{index},server=off,addr.type=unix,addr.path="), port),
        };
        let number = index + 1;
        let card = format!("virtio-net-pci,netdev=net{index},mac=52:54:00:4e:5a:{number:02x},romfile=");
        [cable, card.into()]
    }
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
        let network = Network::Cards(vec![Card::Wire("/t/a,b/port0".into()), Card::User(vec![(40022, 22)])]);
        let args: Vec<[OsString; 2]> = network.cards().iter().enumerate().map(|(at, card)| card.args(at)).collect();
        let expected = [
            [
                "stream,id=net0,server=off,addr.type=unix,addr.path=/t/a,,b/port0",
                "virtio-net-pci,netdev=net0,mac=52:54:00:4e:5a:01,romfile=",
            ],
            [
                "user,id=net1,hostfwd=tcp:127.0.0.1:40022-:22",
                "virtio-net-pci,netdev=net1,mac=52:54:00:4e:5a:02,romfile=",
            ],
        ];
        assert_eq!(args, expected.map(|args| args.map(OsString::from)));
    }
}
