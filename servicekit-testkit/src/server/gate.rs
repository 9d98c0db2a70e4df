//! What stands before the port that a member of a cluster keeps for the others: it lets them through, or not.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

/// A proxy that knows who asks: members of etcd say so in a header of every request.
#[derive(Debug)]
pub(super) struct Gate {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    refused: Refused,
    /// Everybody who ever asked.
    seen: BTreeSet<String>,
    open: Vec<Pair>,
}

#[derive(Debug, Default)]
enum Refused {
    #[default]
    Nobody,
    Everybody,
    One(String),
}

#[derive(Debug)]
struct Pair {
    from: String,
    streams: [TcpStream; 2],
}

impl Gate {
    /// Begins to listen on `port`, before what listens on `inner`.
    pub(super) fn start(port: u16, inner: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        // It ends with the process; a test has few of them.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = shared.clone();
                // A connection that breaks is nothing new to either side.
                thread::spawn(move || drop(serve(client, inner, &state)));
            }
        });
        Ok(Self { port, state })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Everybody who ever asked.
    pub(super) fn seen(&self) -> BTreeSet<String> {
        lock(&self.state).seen.clone()
    }

    /// Lets nobody in from now on.
    pub(super) fn close(&self) {
        lock(&self.state).refuse(Refused::Everybody);
    }

    /// Does not let this one in from now on.
    pub(super) fn close_to(&self, who: &str) {
        lock(&self.state).refuse(Refused::One(who.to_owned()));
    }

    /// Lets everybody in again.
    pub(super) fn open(&self) {
        lock(&self.state).refuse(Refused::Nobody);
    }
}

impl State {
    fn refuse(&mut self, refused: Refused) {
        self.refused = refused;
        for pair in std::mem::take(&mut self.open) {
            if self.refuses(&pair.from) { pair.shut() } else { self.open.push(pair) }
        }
    }

    fn refuses(&self, from: &str) -> bool {
        match &self.refused {
            Refused::Nobody => false,
            Refused::Everybody => true,
            Refused::One(who) => from == who,
        }
    }
}

impl Pair {
    /// Whether this is the pair of that client.
    fn is(&self, client: &TcpStream) -> bool {
        let peer = |stream: &TcpStream| stream.peer_addr().ok();
        peer(&self.streams[0]).is_none_or(|open| Some(open) == peer(client))
    }

    fn shut(&self) {
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut client: TcpStream, inner: u16, state: &Mutex<State>) -> io::Result<()> {
    let head = head(&mut client)?;
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, inner))?;
    let from = sender(&head).unwrap_or_default();
    {
        let mut state = lock(state);
        state.seen.insert(from.clone());
        if state.refuses(&from) {
            return client.shutdown(Shutdown::Both);
        }
        state.open.push(Pair { from, streams: [client.try_clone()?, server.try_clone()?] });
    }
    server.write_all(&head)?;
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    let answering = thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let _ = io::copy(&mut client, &mut server);
    let _ = server.shutdown(Shutdown::Both);
    let _ = answering.join();
    lock(state).open.retain(|pair| !pair.is(&client));
    Ok(())
}

/// Reads the headers of the first request, and whatever came with them.
fn head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(head)
}

/// Who asks, as etcd's `rafthttp` tells it.
fn sender(head: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, id) = lines.find(|(name, _)| name.eq_ignore_ascii_case("X-Server-From"))?;
    Some(id.trim().to_owned())
}
