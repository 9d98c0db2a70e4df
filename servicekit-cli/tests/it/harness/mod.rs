//! Runs the real command on a store of its own, beside services that do what a test tells them.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it, and all of it is for tests"
)]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use servicekit::{Env, Instance, Instant, State, Timestamp, registry::Claim};
use tempfile::TempDir;

/// How long anything may take that a test waits for; more than a machine that is busy needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store that nobody else uses, in a folder that goes with it.
pub(crate) struct Store {
    folder: TempDir,
    runs: AtomicUsize,
    program: PathBuf,
    url: String,
    variables: Vec<(&'static str, &'static str)>,
}

/// What a command that has ended left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A command at work; dropping it kills it.
pub(crate) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self::of(env!("CARGO_BIN_EXE_servicekit").into(), "local")
    }

    /// A file of another scheme, for a command that knows it.
    pub(crate) fn of(program: PathBuf, scheme: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("{scheme}:{}", folder.path().join("store.db").display());
        Self { folder, runs: AtomicUsize::new(0), program, url, variables: Vec::new() }
    }

    /// A store at this address.
    pub(crate) fn at(url: String) -> Self {
        Self { url, ..Self::new() }
    }

    /// Sets a variable of the environment of all commands.
    pub(crate) fn set(&mut self, name: &'static str, value: &'static str) {
        self.variables.push((name, value));
    }

    /// A path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    pub(crate) fn command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SERVICEKIT_")) {
            command.env_remove(name);
        }
        command.env("SERVICEKIT_BACKEND", self.url()).stdin(Stdio::null());
        command.envs(self.variables.iter().copied());
        command.args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        command
    }

    /// Runs a command line, split at spaces, to its end.
    pub(crate) fn run(&self, line: &str) -> Done {
        self.run_args(line.split_whitespace())
    }

    pub(crate) fn run_args<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        self.spawn_command(self.command(args)).wait()
    }

    pub(crate) fn spawn(&self, line: &str) -> Running {
        self.spawn_args(line.split_whitespace())
    }

    pub(crate) fn spawn_args<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.spawn_command(self.command(args))
    }

    pub(crate) fn spawn_command(&self, mut command: Command) -> Running {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let stdout = self.path(&format!("{run}.out"));
        let stderr = self.path(&format!("{run}.err"));
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        Running { child: command.spawn().unwrap(), stdout, stderr }
    }

    /// Runs a command that has to succeed, and reads its JSON.
    pub(crate) fn json(&self, line: &str) -> Value {
        let done = self.run(line);
        assert_eq!(done.code, 0, "{line}: {done:?}");
        serde_json::from_str(&done.stdout).unwrap()
    }

    /// The text of what `json` reads.
    pub(crate) fn json_text(&self, line: &str) -> String {
        self.json(line).to_string()
    }

    /// What `leases` tells of one lease.
    pub(crate) fn lease(&self, label: &str) -> Value {
        self.json(&format!("leases --label {label} -o json"))[0].clone()
    }

    /// A watcher of an instance of `web` that is said to be at `address`.
    pub(crate) fn watch_at(&self, id: &str, web: &Web, address: &str) -> Running {
        let url = web.url();
        let fast = "--interval 100ms --timeout 1s --detect-within 3s --service-info version=7";
        self.spawn(&format!(
            "watch --label web --service-id {id} --monitor-url {url} --address {address} {fast}"
        ))
    }

    /// Registers instances with nobody behind them, which stand for an hour.
    pub(crate) fn register(&self, instances: impl IntoIterator<Item = Instance>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let registry = servicekit::connect(&self.url()).await.unwrap().registry;
            let session = registry.open("nobody", Duration::from_secs(3600)).await.unwrap();
            for instance in instances {
                registry.put(&session, &Claim::default(), &instance).await.unwrap();
            }
        });
    }

    /// A watcher with fast probes.
    pub(crate) fn watch(&self, label: &str, id: &str, url: &str) -> Running {
        let fast = "--interval 100ms --timeout 1s --detect-within 3s";
        self.spawn(&format!("watch --label {label} --service-id {id} --monitor-url {url} {fast}"))
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap()
    }

    /// Waits until stderr has this text.
    pub(crate) fn says(&mut self, text: &str) {
        eventually(&format!("{text:?} on stderr"), || {
            let said = self.stderr().contains(text);
            if !said && let Some(status) = self.child.try_wait().unwrap() {
                assert!(
                    self.stderr().contains(text),
                    "{status} without {text:?}: {}",
                    self.stderr()
                );
            }
            said
        });
    }

    /// Waits until the last whole line of stdout is this one.
    pub(crate) fn last_line_is(&self, line: &str) {
        eventually(&format!("{line:?} as the last line"), || {
            let stdout = self.stdout();
            stdout.strip_suffix('\n').is_some_and(|lines| lines.rsplit('\n').next() == Some(line))
        });
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Done {
        let mut status = None;
        eventually("the end of the command", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        Done { code: code(status.unwrap()), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Signals it, and waits for its end, for at most `within`.
    pub(crate) fn end(self, signal: Signal, within: Duration) -> Done {
        let began = now();
        self.signal(signal);
        let done = self.wait();
        let took = now().since(began);
        assert!(took < within, "took {took:?}: {done:?}");
        done
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// As a shell tells it, but negative where a signal ended the command itself.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| -status.signal().unwrap_or_default())
}

impl Done {
    /// It ended with 2 and said so on one line that has all of `parts`.
    pub(crate) fn is_usage_error(&self, parts: &[&str]) {
        assert_eq!(self.code, 2, "{self:?}");
        assert_eq!(self.stdout, "");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is missing: {}", self.stderr);
        }
    }
}

/// Waits for a condition, looking often; fails when it does not come.
#[expect(
    clippy::disallowed_methods,
    reason = "these tests are threads and processes, without a runtime"
)]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = now();
    while !condition() {
        let waited = now().since(began);
        assert!(waited < PATIENCE, "waited for {what} for {waited:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn now() -> Instant {
    Env::system().clock.now()
}

/// A web server that answers every request with a status.
pub(crate) struct Web {
    port: u16,
    status: Arc<AtomicU16>,
    ended: Arc<AtomicBool>,
}

impl Web {
    pub(crate) fn new(status: u16) -> Self {
        Self::answering(status, "ok".into())
    }

    /// Answers with a JSON document.
    pub(crate) fn serving(document: String) -> Self {
        Self::answering(200, document)
    }

    fn answering(status: u16, body: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let status = Arc::new(AtomicU16::new(status));
        let ended = Arc::new(AtomicBool::new(false));
        let web = Self { port, status: status.clone(), ended: ended.clone() };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                // A client that has gone is its own business.
                let _ =
                    stream.and_then(|stream| answer(stream, status.load(Ordering::Relaxed), &body));
            }
        });
        web
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/health", self.port)
    }

    /// What it answers from now on.
    pub(crate) fn set(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn answer(mut stream: TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&buffer[..read]),
        }
    }
    let location = if status / 100 == 3 { "Location: /\r\n" } else { "" };
    write!(
        stream,
        "HTTP/1.1 {status} Told\r\n{location}Content-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// An instance of `web` that is up, at a host that may be anything, since a moment without milliseconds.
pub(crate) fn instance(id: &str, host: &str, port: Option<u16>) -> Instance {
    let since = Timestamp::from_millis(1_763_683_200_000);
    let mut instance = Instance::starting("web".parse().unwrap(), id.parse().unwrap(), host, since);
    instance.port = port;
    instance.change(State::Up, "rise 1", "200 OK", since);
    instance
}

/// This host's name, as the command knows it.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_str().unwrap().to_owned()
}
