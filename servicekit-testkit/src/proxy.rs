//! A TCP proxy that fails as networks do: before a real server, so that real clients meet it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use servicekit_core::Random;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Passes bytes between clients and one server, or does to them what [`Mode`] says. Dropping it cuts all connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    count: Arc<Mutex<Count>>,
    accepting: JoinHandle<()>,
}

/// What a proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "tests name each")]
pub enum Mode {
    /// Passes everything on.
    Pass,
    /// Passes everything on, later.
    Delay(Duration),
    /// Passes on one byte of an answer at a time, with this pause.
    Drip(Duration),
    /// Keeps connections open and passes nothing on: what was sent waits, and answers do too.
    Silence,
    /// Passes requests on; their answers are lost.
    LoseAnswers,
    /// Cuts all connections, and every new one at once.
    Cut,
}

/// What went through a proxy of the requests of HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were begun.
    pub requests: u64,
    /// Times that requests were begun after an answer had come: one after the other.
    pub round_trips: u64,
    /// Whether an answer came since a request was begun.
    answered: bool,
}

impl Proxy {
    /// Begins to listen, before the server at `host:port`.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub async fn start(server: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (mode, modes) = watch::channel(Mode::Pass);
        let count = Arc::new(Mutex::new(Count { answered: true, ..Count::default() }));
        let server = server.to_owned();
        let accepting = tokio::spawn(accept(listener, server, modes, count.clone()));
        Self { port, mode, count, accepting }
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)).to_string()
    }

    /// Does something else from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// From now on something happens to all connections for a moment, one of these faults each, and then they are well for
    /// a while.
    pub fn fail_now_and_then(self, faults: &'static [Mode], random: Random) {
        let many = u64::try_from(faults.len()).unwrap_or(1);
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(200 + random.below(600))).await;
                let fault = faults[usize::try_from(random.below(many)).unwrap_or(0)];
                self.set(fault);
                sleep(Duration::from_millis(10 + random.below(100))).await;
                if fault == Mode::LoseAnswers {
                    // What is missing in a stream is never made good; a network would not let the connection go on either.
                    self.set(Mode::Cut);
                    sleep(Duration::from_millis(5)).await;
                }
                self.set(Mode::Pass);
            }
        });
    }

    /// What went through since the last call.
    #[must_use]
    pub fn take_count(&self) -> Count {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *count, Count { answered: true, ..Count::default() })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Cut);
        self.accepting.abort();
    }
}

type Shared = Arc<Mutex<Count>>;

async fn accept(listener: TcpListener, server: String, mode: watch::Receiver<Mode>, count: Shared) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, server.clone(), mode.clone(), count.clone()));
    }
}

async fn serve(client: TcpStream, server: String, mode: watch::Receiver<Mode>, count: Shared) {
    let mut modes = mode.clone();
    let serving = async {
        let Ok(server) = TcpStream::connect(server).await else { return };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let sent = pass(from_client, to_server, Way::Request, mode.clone(), count.clone());
        let answered = pass(from_server, to_client, Way::Answer, mode.clone(), count);
        tokio::join!(sent, answered);
    };
    let is_cut = async {
        // The sender is gone with the proxy.
        let _ = modes.wait_for(|mode| *mode == Mode::Cut).await;
    };
    tokio::select! { biased; () = is_cut => {} () = serving => {} }
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Request,
    Answer,
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut mode: watch::Receiver<Mode>,
    count: Shared,
) {
    let mut frames = Frames::new(way);
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..read];
        let talks = |mode: &Mode| *mode != Mode::Silence;
        let Ok(now) = mode.wait_for(talks).await.map(|mode| *mode) else { return };
        frames.read(bytes, &count);
        let written = match (now, way) {
            (Mode::LoseAnswers, Way::Answer) => Ok(()),
            (Mode::Drip(pause), Way::Answer) => drip(&mut to, bytes, pause, &mode).await,
            (Mode::Delay(delay), _) => {
                sleep(delay).await;
                to.write_all(bytes).await
            }
            _ => to.write_all(bytes).await,
        };
        if written.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

async fn drip(
    to: &mut OwnedWriteHalf,
    bytes: &[u8],
    pause: Duration,
    mode: &watch::Receiver<Mode>,
) -> std::io::Result<()> {
    for (i, byte) in bytes.iter().enumerate() {
        if *mode.borrow() != Mode::Drip(pause) {
            return to.write_all(&bytes[i..]).await;
        }
        sleep(pause).await;
        to.write_all(std::slice::from_ref(byte)).await?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "real networks live in real time")]
async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Finds the frames of HTTP/2 (RFC 9113, section 4.1), or the messages of HTTP/1.1 with bodies of a told length, in a
/// stream of bytes that comes in pieces.
struct Frames {
    way: Way,
    /// Whether it is HTTP/1.1, which the first bytes tell.
    messages: Option<bool>,
    /// Bytes to pass over: the rest of a frame or of a body, or the preface of a client.
    skip: usize,
    head: Vec<u8>,
}

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const HEAD: usize = 9;
const HEADERS: u8 = 1;

impl Frames {
    fn new(way: Way) -> Self {
        Self { way, messages: None, skip: 0, head: Vec::with_capacity(HEAD) }
    }

    fn read(&mut self, mut bytes: &[u8], count: &Shared) {
        let messages = match self.messages {
            Some(messages) => messages,
            None => self.begin(bytes),
        };
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = &bytes[passed..];
            if bytes.is_empty() {
                return;
            }
            let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
            bytes = if messages {
                self.message(bytes, &mut count)
            } else {
                self.frame(bytes, &mut count)
            };
        }
    }

    /// Tells the protocol from the first bytes.
    fn begin(&mut self, bytes: &[u8]) -> bool {
        let messages = match self.way {
            Way::Request => !bytes.starts_with(b"PRI"),
            Way::Answer => bytes.starts_with(b"HTTP/"),
        };
        if self.way == Way::Request && !messages {
            self.skip = PREFACE;
        }
        self.messages = Some(messages);
        messages
    }

    /// Takes bytes of the head of a frame; returns the rest.
    fn frame<'b>(&mut self, bytes: &'b [u8], count: &mut Count) -> &'b [u8] {
        let taken = (HEAD - self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..taken]);
        if let &[a, b, c, kind, ..] = &*self.head
            && self.head.len() == HEAD
        {
            self.head.clear();
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if kind == HEADERS {
                self.began(count);
            }
        }
        &bytes[taken..]
    }

    /// Takes bytes of the head of a message; returns the rest.
    fn message<'b>(&mut self, bytes: &'b [u8], count: &mut Count) -> &'b [u8] {
        for (i, byte) in bytes.iter().enumerate() {
            self.head.push(*byte);
            if self.head.ends_with(b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.head).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                self.skip = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
                self.head.clear();
                self.began(count);
                return &bytes[i + 1..];
            }
        }
        &[]
    }

    fn began(&self, count: &mut Count) {
        match self.way {
            Way::Request => {
                count.requests += 1;
                count.round_trips += u64::from(count.answered);
                count.answered = false;
            }
            Way::Answer => count.answered = true,
        }
    }
}
