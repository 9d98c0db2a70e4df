//! Real servers for tests: each on free ports, with a folder of its own, gone with the test that started it.

#![expect(clippy::disallowed_methods, reason = "waits for other processes, in real time")]

mod couchdb;
mod dynamodb;
mod gate;

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use servicekit_core::Random;
use tempfile::TempDir;

use self::gate::Gate;
pub use self::{
    couchdb::CouchDb,
    dynamodb::{Call, DynamoDb},
};

/// Says that the test which calls it does not look at something, and why: also where the harness keeps what tests that pass
/// print to itself.
pub fn skipped(why: impl fmt::Display) {
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // Nobody to tell is no failure.
    let _ = writeln!(io::stderr(), "ignored in {test}: {why}");
}

/// There is no such server: that is said, and a failure where `SERVICEKIT_REQUIRE_BACKENDS` is set.
fn missing<T>(why: &str) -> Option<T> {
    assert!(env::var_os("SERVICEKIT_REQUIRE_BACKENDS").is_none(), "{why}");
    skipped(why);
    None
}

/// A cluster of etcd servers on this host, or one server alone.
///
/// The program is the one that `SERVICEKIT_ETCD` names, or `etcd`.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
    /// One before each member, for the others.
    gates: Vec<Gate>,
}

/// The files with which a cluster encrypts: PEM, for `127.0.0.1`.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by tests")]
pub struct Tls {
    /// The CA that clients' certificates have to be from.
    pub ca: PathBuf,
    /// The servers' certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How long a server may take to start, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

impl Etcd {
    /// Starts one server; `None` where there is no such program, unless `SERVICEKIT_REQUIRE_BACKENDS` is set.
    ///
    /// # Panics
    ///
    /// When it does not start, or is missing although it is required.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one server with more arguments.
    ///
    /// # Panics
    ///
    /// As [`Etcd::start`].
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::start_all(1, None, arguments)
    }

    /// Starts a cluster of so many members.
    ///
    /// # Panics
    ///
    /// As [`Etcd::start`].
    #[must_use]
    pub fn start_cluster(members: usize, tls: Option<&Tls>) -> Option<Self> {
        Self::start_all(members, tls, &[])
    }

    fn start_all(members: usize, tls: Option<&Tls>, arguments: &[&str]) -> Option<Self> {
        let program = env::var_os("SERVICEKIT_ETCD").map_or_else(|| "etcd".into(), PathBuf::from);
        if !is_there(&program) {
            let advice =
                "install it with `apt-get install etcd-server`, or name it in SERVICEKIT_ETCD";
            return missing(&format!("{} is missing; {advice}", program.display()));
        }
        // Somebody else may take a port between the choice and the start.
        let started = (0..5).find_map(|_| Self::try_start(&program, members, tls, arguments));
        Some(started.expect("etcd starts"))
    }

    fn try_start(
        program: &Path,
        members: usize,
        tls: Option<&Tls>,
        arguments: &[&str],
    ) -> Option<Self> {
        let ports = free_ports(3 * members);
        let (clients, peers) = ports.split_at(members);
        let (peers, inner) = peers.split_at(members);
        let gates = peers.iter().zip(inner).map(|(port, inner)| Gate::start(*port, *inner).ok());
        let gates = gates.collect::<Option<Vec<_>>>()?;
        let name = |i: usize| format!("m{i}");
        let all: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(i, port)| format!("{}={}", name(i), peer(*port)))
            .collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let member = |(i, client): (usize, &u16)| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let url = format!("{scheme}://127.0.0.1:{client}");
            let mut command = Command::new(program);
            command.args(["--name", &name(i), "--data-dir"]).arg(folder.path().join("data"));
            command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
            command.args(["--listen-peer-urls", &peer(inner[i])]);
            command.args(["--initial-advertise-peer-urls", &peer(gates[i].port())]);
            command.args(["--initial-cluster", &all.join(",")]);
            // What a test writes need not outlive the machine.
            command.arg("--unsafe-no-fsync").args(arguments);
            if let Some(Tls { ca, cert, key }) = tls {
                command.arg("--trusted-ca-file").arg(ca).arg("--client-cert-auth");
                command.arg("--cert-file").arg(cert).arg("--key-file").arg(key);
            }
            Member::new(command, folder, *client)
        };
        let members = clients.iter().enumerate().map(member).collect();
        let mut started = Self { members, gates };
        started.members.iter_mut().all(Member::wait_until_it_listens).then_some(started)
    }

    /// Where the members listen, as `host:port` with commas between them.
    #[must_use]
    pub fn endpoints(&self) -> String {
        let endpoints: Vec<_> = self.members.iter().map(Member::endpoint).collect();
        endpoints.join(",")
    }

    /// Cuts a member off from the others. Clients reach it as before.
    ///
    /// # Panics
    ///
    /// When the members have not found each other yet.
    pub fn isolate(&self, member: usize) {
        let seen = self.gates.iter().map(Gate::seen);
        let all = seen.fold(BTreeSet::new(), |all, seen| &all | &seen);
        // Nobody asks itself.
        let named = &all - &self.gates[member].seen();
        let name = named.first().expect("the others have heard of it");
        for (i, gate) in self.gates.iter().enumerate() {
            if i == member { gate.close() } else { gate.close_to(name) }
        }
    }

    /// Lets all members reach each other again.
    pub fn rejoin(&self) {
        self.gates.iter().for_each(Gate::open);
    }

    /// The members.
    #[must_use]
    pub fn members(&mut self) -> &mut [Member] {
        &mut self.members
    }
}

fn peer(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// One server, alone or of a cluster.
pub struct Member {
    // Before its folder, which has to go after it.
    process: Option<Process>,
    command: Command,
    folder: TempDir,
    port: u16,
}

impl Member {
    fn new(command: Command, folder: TempDir, port: u16) -> Self {
        let mut member = Self { process: None, command, folder, port };
        member.start();
        member
    }

    /// Starts it, with the data that it had.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    pub fn start(&mut self) {
        let log = self.folder.path().join("log");
        self.process = Some(Process::start(&self.command, &log).expect("the server can be run"));
    }

    /// Kills it; its data stay.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops it where it stands: it answers nothing and closes nothing.
    pub fn pause(&self) {
        self.process.iter().for_each(|process| process.signal("STOP"));
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.iter().for_each(|process| process.signal("CONT"));
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder that its data are in.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it wrote to its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Whether it came to listen before it ended.
    fn wait_until_it_listens(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return true;
            }
            if self.process.as_mut().is_none_or(Process::has_ended) {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not listen after {PATIENCE:?}: {}", self.log());
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

/// A server that ends with this process, however that ends: a shell kills it when nobody holds its input any longer.
struct Process {
    guard: Child,
    server: u32,
}

const GUARD: &str = "\"$@\" </dev/null >>\"$LOG\" 2>&1 & echo $!; read -r _; kill -9 $!; wait $!";

impl Process {
    fn start(command: &Command, log: &Path) -> io::Result<Self> {
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "sh"]).arg(command.get_program()).args(command.get_args());
        guard.env("LOG", log).stdin(Stdio::piped()).stdout(Stdio::piped());
        // The shell tells how the server ended, which is no news.
        let mut guard = guard.stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(guard.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?)
            .read_line(&mut line)?;
        let server = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self { guard, server })
    }

    fn signal(&self, signal: &str) {
        let mut kill = Command::new("kill");
        let _ = kill.arg(format!("-{signal}")).arg(self.server.to_string()).status();
    }

    fn has_ended(&mut self) -> bool {
        !Path::new("/proc").join(self.server.to_string()).exists()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn is_there(program: &Path) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    program.components().count() > 1 && program.exists()
        || env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Ports that are free now and go to nobody else while this process lives: also while its server is down, for it is to be
/// started again there. So they are below those that the kernel gives to connections: a client that tries to reach a server that
/// is down may otherwise be given its port, and even reach itself.
fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u16 = 10_000;
    const COUNT: u64 = 22_000;
    /// Sockets without a file, each of which tells other processes that a port is taken; the kernel removes them with us.
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

    let random = Random::system();
    let mut ports = Vec::new();
    while ports.len() < count {
        let port = FIRST + u16::try_from(random.below(COUNT)).unwrap_or(0);
        let name = SocketAddr::from_abstract_name(format!("servicekit-test-port-{port}"));
        let Ok(taken) = name.and_then(|name| UnixListener::bind_addr(&name)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
            ports.push(port);
        }
    }
    ports
}
