//! TFTP, from a server that misbehaves as it is told.

use std::net::{SocketAddr, UdpSocket};
use std::thread;

use super::*;

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Takes the block size that is asked for.
    Options,
    /// Passes over options.
    NoOptions,
    /// Answers options with an error.
    RefusesOptions,
    /// Loses its first packet of each kind, and sends each block twice.
    Lossy,
    /// Has no such file.
    NotFound,
    /// Says nothing.
    Silent,
}

/// Serves one file to whoever asks, and tells the requests' texts.
fn serve(content: Vec<u8>, manner: Manner) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let address = socket.local_addr().expect("bound");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let request = String::from_utf8_lossy(&buffer[2..length]).into_owned();
            let count = {
                let mut kept = kept.lock().expect("no panic");
                kept.push(request.clone());
                kept.len()
            };
            if manner == Manner::Silent || (manner == Manner::Lossy && count == 1) {
                continue;
            }
            let content = content.clone();
            thread::spawn(move || transfer(&content, manner, &request, from));
        }
    });
    (address, requests)
}

fn transfer(content: &[u8], manner: Manner, request: &str, to: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let asks = request.contains("blksize");
    let error = |code: u8, text: &str| [&[0, 5, 0, code], text.as_bytes(), &[0]].concat();
    let send = |packet: &[u8]| drop(socket.send_to(packet, to));
    match manner {
        Manner::NotFound => return send(&error(1, "File not found")),
        Manner::RefusesOptions if asks => return send(&error(8, "no options")),
        Manner::Options | Manner::NoOptions | Manner::RefusesOptions | Manner::Lossy | Manner::Silent => {}
    }
    let mut size = 512;
    if asks && matches!(manner, Manner::Options | Manner::Lossy) {
        size = 1024;
        send(b"\0\x06blksize\x001024\0");
        if !acknowledged(&socket, 0) {
            return;
        }
    }
    let blocks = content.len() / size + 1;
    for index in 0..blocks {
        let number = (index + 1) as u16;
        let block = &content[index * size..content.len().min((index + 1) * size)];
        let packet = [&[0, 3], &number.to_be_bytes()[..], block].concat();
        if manner == Manner::Lossy {
            // A stranger's packet, and everything twice.
            let stranger = UdpSocket::bind("127.0.0.1:0").expect("loopback");
            drop(stranger.send_to(&[&[0, 3], &number.to_be_bytes()[..], b"forged"].concat(), to));
            send(&packet);
        }
        send(&packet);
        if !acknowledged(&socket, number) {
            return;
        }
    }
}

fn acknowledged(socket: &UdpSocket, number: u16) -> bool {
    let mut buffer = [0; 516];
    while let Ok((length, _)) = socket.recv_from(&mut buffer) {
        if buffer[..length] == [&[0, 4], &number.to_be_bytes()[..]].concat() {
            return true;
        }
    }
    false
}

fn get(address: SocketAddr, settings: &Ignition) -> Result<Vec<u8>, String> {
    let source = resource(format!("tftp://{address}/dir/a%20file"));
    fetcher(settings).fetch(&source, 64 << 20).map_err(|error| format!("{error:#}"))
}

#[test]
fn files_of_every_size_arrive_whole() {
    for manner in [Manner::Options, Manner::NoOptions, Manner::RefusesOptions, Manner::Lossy] {
        for size in [0, 1, 511, 512, 513, 1023, 1024, 1025, 5000] {
            // One case with a loss is enough of waiting.
            if manner == Manner::Lossy && size != 5000 {
                continue;
            }
            let content: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
            let (address, requests) = serve(content.clone(), manner);
            assert_eq!(get(address, &Ignition::default()).as_ref(), Ok(&content), "{manner:?} {size}");
            let first = requests.lock().expect("no panic")[0].clone();
            assert_eq!(first, "/dir/a file\0octet\0blksize\x001400\0", "{manner:?}");
        }
    }
}

#[test]
fn block_numbers_wrap_around() {
    let content: Vec<u8> = (0..(65_540 * 512)).map(|index| (index % 253) as u8).collect();
    let (address, _) = serve(content.clone(), Manner::NoOptions);
    assert!(get(address, &Ignition::default()) == Ok(content), "the contents differ");
}

#[test]
fn errors_and_silence_end_it() {
    let (address, requests) = serve(Vec::new(), Manner::NotFound);
    let error = get(address, &Ignition::default()).expect_err("not found");
    assert!(error.ends_with("the server answered error 1: File not found"), "{error}");
    assert_eq!(requests.lock().expect("no panic").len(), 1);
    let (address, requests) = serve(Vec::new(), Manner::Silent);
    let start = Instant::now();
    let error = get(address, &timeouts(None, Some(2))).expect_err("silent");
    assert!(error.ends_with("time is up"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(requests.lock().expect("no panic").len(), 2, "asked at once, and after a second");
}

#[test]
fn contents_are_verified_too() {
    let (address, _) = serve(b"hullo".to_vec(), Manner::Options);
    let hash = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let verification = Some(Verification { hash: Some(hash.into()) });
    let source = Resource { verification, ..resource(format!("tftp://{address}/x")) };
    let error = fetch(&Ignition::default(), &source).expect_err("another hash");
    assert!(error.contains("its hash is"), "{error}");
}
