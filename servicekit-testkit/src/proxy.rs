//! A TCP proxy that fails as networks do: before a real server, so that real clients meet it.

mod count;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use servicekit_core::{Env, Random};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

pub use self::count::Count;
use self::count::{Frames, Way};

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

/// Faults of a network that is slow: everything arrives, late or in pieces, and nobody may notice.
pub const SLOW: &[Mode] =
    &[Mode::Delay(Duration::from_millis(20)), Mode::Drip(Duration::from_millis(1)), Mode::Silence];

/// Faults of a network that fails: connections break, and answers are lost with them, of requests that were applied.
pub const FAILING: &[Mode] = &[Mode::LoseAnswers, Mode::Cut, Mode::Silence];

/// A network with such faults before the server at `host:port`, for as long as the runtime lives; returns where the server is
/// found there.
///
/// # Panics
///
/// When there is no free port.
pub async fn network(server: &str, faults: &'static [Mode]) -> String {
    let proxy = Proxy::start(server).await;
    let endpoint = proxy.endpoint();
    proxy.fail_now_and_then(faults);
    endpoint
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
        let count = Arc::new(Mutex::new(Count::begun()));
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
    /// a while: as a seed says, which is printed.
    fn fail_now_and_then(self, faults: &'static [Mode]) {
        let seed = Env::system().random.below(1 << 32);
        println!("{faults:?} with seed {seed}");
        let random = Random::seeded(seed);
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
        std::mem::replace(&mut *count, Count::begun())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mode.send_replace(Mode::Cut);
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    server: String,
    mode: watch::Receiver<Mode>,
    count: count::Shared,
) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client, server.clone(), mode.clone(), count.clone()));
    }
}

async fn serve(
    client: TcpStream,
    server: String,
    mode: watch::Receiver<Mode>,
    count: count::Shared,
) {
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

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut mode: watch::Receiver<Mode>,
    count: count::Shared,
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
