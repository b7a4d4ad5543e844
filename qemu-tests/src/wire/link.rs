//! A slow and lossy link between a machine's card and QEMU's user network.
//!
//! The user network and the card are in the same QEMU, but not plugged into each other: cables of both lead here, and
//! frames go from one to the other late, or never. A hub is between the user network and its cable, since a network
//! takes a card or a hub alone; QEMU says of it that it has no card, which is so. Thus the machine has all that the
//! user network gives: addresses by DHCP, the host's loopback at 10.0.2.2, and ports of the host that lead to it.
//!
//! Each frame is late by the same time, so that their order stays. Which are lost follows from the seed and from how
//! many came before. Left out: a rate, since what loss leaves of TCP is slow enough, and damaged or doubled frames.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cable;
use crate::cards::Card;

/// How many frames are on their way at most, in each direction. More are lost, as where a router's memory is full.
const ON_THE_WAY: usize = 1024;

/// How bad a link is, in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quality {
    /// Frames of a hundred that are lost.
    pub loss: u8,
    /// How late the others are.
    pub delay: Duration,
    /// Another number loses other frames.
    pub seed: u64,
}

/// The link. It works until the test's process ends.
#[derive(Debug)]
pub struct Link {
    /// The card's, and the user network's.
    ends: [PathBuf; 2],
    /// Where they are.
    _sockets: tempfile::TempDir,
    /// Of what the card sent, and of what the user network sent.
    traffic: [Arc<Mutex<Traffic>>; 2],
}

/// What came in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Those of them that were lost by chance.
    pub lost: u64,
    /// Those of them for which there was no room.
    pub overrun: u64,
    /// Those of them that came to an end where nothing was plugged in.
    pub unplugged: u64,
}

impl Link {
    /// A link of this quality.
    ///
    /// # Errors
    /// When there is no place for its sockets.
    pub fn start(quality: Quality) -> Result<Link> {
        let (sockets, paths) = cable::sockets(["card", "network"].map(str::to_owned).into_iter())?;
        let ends: [PathBuf; 2] = paths.try_into().expect("two names");
        let plugged: [Arc<Mutex<Option<UnixStream>>>; 2] = Default::default();
        let traffic: [Arc<Mutex<Traffic>>; 2] = Default::default();
        for (from, end) in ends.iter().enumerate() {
            let (sender, receiver) = sync_channel(ON_THE_WAY);
            let (mine, other) = (Arc::clone(&plugged[from]), Arc::clone(&plugged[1 - from]));
            let mut way = Way {
                chance: Chance(quality.seed.wrapping_mul(2).wrapping_add(from as u64)),
                quality,
                traffic: Arc::clone(&traffic[from]),
                sender,
            };
            let counted = Arc::clone(&traffic[from]);
            thread::spawn(move || deliver(&receiver, &other, &counted));
            let plug = move |stream| *mine.lock().expect("no holder panics") = Some(stream);
            cable::listen(end, plug, move |frame| way.take(frame))?;
        }
        Ok(Link { ends, _sockets: sockets, traffic })
    }

    /// A card at this link. TCP ports are those of [`Card::User`].
    pub fn card(&self, forwards: Vec<(u16, u16)>) -> Card {
        let [near, far] = self.ends.clone();
        Card::Link { near, far, forwards }
    }

    /// What the machine sent so far.
    pub fn sent(&self) -> Traffic {
        *self.traffic[0].lock().expect("no holder panics")
    }

    /// What was sent to the machine so far.
    pub fn received(&self) -> Traffic {
        *self.traffic[1].lock().expect("no holder panics")
    }
}

/// The beginning of one direction.
struct Way {
    quality: Quality,
    chance: Chance,
    traffic: Arc<Mutex<Traffic>>,
    /// Frames, and when they are due.
    sender: SyncSender<(Instant, Vec<u8>)>,
}

impl Way {
    fn take(&mut self, frame: Vec<u8>) -> bool {
        let mut traffic = self.traffic.lock().expect("no holder panics");
        traffic.frames += 1;
        if self.chance.next() % 100 < u64::from(self.quality.loss) {
            traffic.lost += 1;
        } else if self.sender.try_send((Instant::now() + self.quality.delay, frame)).is_err() {
            traffic.overrun += 1;
        }
        true
    }
}

/// The end of one direction: hands on what is due, for ever.
fn deliver(frames: &Receiver<(Instant, Vec<u8>)>, to: &Mutex<Option<UnixStream>>, traffic: &Mutex<Traffic>) {
    for (due, frame) in frames {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut cable = to.lock().expect("no holder panics");
        let delivered = cable.as_mut().is_some_and(|stream| cable::write(stream, &frame).is_ok());
        if !delivered {
            *cable = None;
            traffic.lock().expect("no holder panics").unplugged += 1;
        }
    }
}

/// Numbers that look like chance: [SplitMix64](https://doi.org/10.1145/2714064.2660195).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// How long a busy host may take.
    const PATIENCE: Duration = Duration::from_secs(30);
    const DELAY: Duration = Duration::from_millis(150);

    /// A link with both cables plugged in.
    struct Plugged {
        link: Link,
        cables: [UnixStream; 2],
        /// How many frames came, at each end.
        came: [u64; 2],
    }

    impl Plugged {
        fn new(quality: Quality) -> Self {
            let link = Link::start(quality).unwrap();
            let cables = [0, 1].map(|end: usize| UnixStream::connect(&link.ends[end]).unwrap());
            let mut plugged = Self { link, cables, came: [0; 2] };
            plugged.greet(0);
            plugged.greet(1);
            plugged
        }

        /// Sends a frame by which the end's cable is known once it is counted. It may be gone, as the other end's cable
        /// may not be known yet.
        fn greet(&mut self, end: usize) {
            self.send(end, &[0]);
        }

        fn counted(&self, end: usize) -> Traffic {
            *self.link.traffic[end].lock().unwrap()
        }

        /// Sends frames from an end, each with its number, and waits until all have been taken.
        fn send(&mut self, end: usize, numbers: &[u16]) {
            let before = self.counted(end).frames;
            for number in numbers {
                cable::write(&mut self.cables[end], &number.to_be_bytes()).unwrap();
            }
            let started = Instant::now();
            while self.counted(end).frames < before + numbers.len() as u64 {
                assert!(started.elapsed() < PATIENCE, "{:?} came", self.counted(end));
                thread::sleep(Duration::from_millis(1));
            }
        }

        /// The numbers that come at an end, greetings apart.
        fn come(&mut self, end: usize) -> Vec<u16> {
            let (mut numbers, started) = (Vec::new(), Instant::now());
            loop {
                let Traffic { frames, lost, overrun, unplugged } = self.counted(1 - end);
                let missing = frames - lost - overrun - unplugged - self.came[end];
                assert!(started.elapsed() < PATIENCE, "{missing} are still missing");
                // When nothing is missing, nothing must come any more.
                self.cables[end].set_read_timeout(Some(DELAY)).unwrap();
                let mut message = [0; 6];
                match self.cables[end].read_exact(&mut message) {
                    Ok(()) => {
                        assert_eq!(message[..4], [0, 0, 0, 2]);
                        self.came[end] += 1;
                        numbers.push(u16::from_be_bytes([message[4], message[5]]));
                    }
                    Err(_) if missing == 0 => break,
                    Err(_) => {}
                }
            }
            numbers.retain(|number| *number > 0);
            numbers
        }
    }

    fn quality(loss: u8) -> Quality {
        Quality { loss, delay: DELAY, seed: 1 }
    }

    #[test]
    fn frames_are_lost_by_chance_and_keep_their_order() {
        let numbers: Vec<u16> = (1..=1000).collect();
        let run = |seed| {
            let mut plugged = Plugged::new(Quality { seed, ..quality(10) });
            [0, 1].map(|end| {
                plugged.send(end, &numbers);
                let came = plugged.come(1 - end);
                // Six standard deviations, and which are lost is given by the seed.
                assert!((840..=960).contains(&came.len()), "{} came", came.len());
                assert!(came.is_sorted_by(|a, b| a < b), "they were overtaken: {came:?}");
                came
            })
        };
        let [there, back] = run(1);
        assert_ne!(there, back, "either way has its own chance");
        assert_eq!(run(1), [there.clone(), back], "the same seed");
        assert_ne!(run(2)[0], there, "another seed");
    }

    #[test]
    fn each_frame_is_late() {
        let mut plugged = Plugged::new(quality(0));
        plugged.come(1);
        plugged.cables[1].set_read_timeout(Some(PATIENCE)).unwrap();
        for number in 1..=3 {
            let started = Instant::now();
            plugged.send(0, &[number]);
            plugged.cables[1].read_exact(&mut [0; 6]).unwrap();
            assert!(started.elapsed() >= DELAY, "it came after {:?}", started.elapsed());
        }
        let (sent, received) = (plugged.link.sent(), plugged.link.received());
        assert_eq!((sent.frames, sent.lost, received.frames), (4, 0, 1));
    }

    #[test]
    fn what_is_on_the_way_is_bounded() {
        let mut plugged = Plugged::new(Quality { delay: Duration::from_secs(10), ..quality(0) });
        let many = u16::try_from(ON_THE_WAY).unwrap() + 100;
        plugged.send(0, &(1..=many).collect::<Vec<u16>>());
        let overrun = plugged.counted(0).overrun;
        // With the greeting 101 are too many, of which one waits outside the queue for its time.
        assert_eq!(overrun, 100);
    }

    #[test]
    fn a_dead_link_hands_nothing_on_and_another_guest_may_come() {
        let mut dead = Plugged::new(quality(100));
        dead.send(0, &[1, 2, 3]);
        assert_eq!((dead.come(1), dead.counted(0).lost), (vec![], 4));

        let mut plugged = Plugged::new(quality(0));
        plugged.come(0);
        plugged.cables[0] = UnixStream::connect(&plugged.link.ends[0]).unwrap();
        plugged.greet(0);
        plugged.send(0, &[7]);
        plugged.send(1, &[8]);
        assert_eq!((plugged.come(1), plugged.come(0)), (vec![7], vec![8]));
    }
}
