//! Real servers for tests: each on free ports, with a folder of its own, gone with the test that started it.

use std::{
    env, fmt, fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// One etcd server, or one member of a cluster.
///
/// The program is the one that `SERVICEKIT_ETCD` names, or `etcd`.
pub struct Etcd {
    folder: TempDir,
    port: u16,
    process: Process,
}

/// How long a server may take to start, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

impl Etcd {
    /// Starts one; `None` where there is no such program, unless `SERVICEKIT_REQUIRE_BACKENDS` is set.
    ///
    /// # Panics
    ///
    /// When it does not start, or is missing although it is required.
    #[must_use]
    pub fn start() -> Option<Self> {
        let program = env::var_os("SERVICEKIT_ETCD").map_or_else(|| "etcd".into(), PathBuf::from);
        if !is_there(&program) {
            let advice = "install it with `apt-get install etcd-server`, or name it in SERVICEKIT_ETCD";
            assert!(
                env::var_os("SERVICEKIT_REQUIRE_BACKENDS").is_none(),
                "{} is missing; {advice}",
                program.display()
            );
            eprintln!("ignored: {} is missing; {advice}", program.display());
            return None;
        }
        // Somebody else may take a port between the choice and the start.
        let started = (0..5).find_map(|_| Self::try_start(&program));
        Some(started.expect("etcd starts"))
    }

    fn try_start(program: &Path) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [client, peer] = free_ports();
        let (clients, peers) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        // Nothing that tests hold has to outlive the machine.
        command.arg("--unsafe-no-fsync").env_remove("ETCD_DATA_DIR");
        let log = folder.path().join("log");
        let process = Process::start(command, &log).expect("etcd can be run");
        let mut started = Self { folder, port: client, process };
        started.wait_until_ready().then_some(started)
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it wrote to its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn wait_until_ready(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if get(self.port, "/health").is_ok_and(|answer| answer.contains("\"true\"")) {
                return true;
            }
            if self.process.has_ended() {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("etcd is not well after {PATIENCE:?}: {}", self.log());
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

/// A server that ends with this process, however that ends: a shell kills it when nobody holds its input any longer.
struct Process(Child);

const GUARD: &str = "\"$@\" </dev/null & read -r _; kill -9 $!; wait $!";

impl Process {
    fn start(command: Command, log: &Path) -> io::Result<Self> {
        let log = fs::File::create(log)?;
        let mut guard = Command::new("sh");
        guard.args(["-c", GUARD, "sh"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => guard.env(name, value),
                None => guard.env_remove(name),
            };
        }
        guard.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        guard.spawn().map(Self)
    }

    fn has_ended(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn is_there(program: &Path) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    program.components().count() > 1 && program.exists()
        || env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Ports that nobody listened on a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let listeners: [TcpListener; N] = std::array::from_fn(bind);
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
