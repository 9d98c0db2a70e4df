use std::{
    collections::HashMap,
    env, fmt, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use tempfile::TempDir;

use super::{PATIENCE, Process, free_ports, is_there, missing};

/// Amazon's DynamoDB Local, in memory, behind a proxy that adds what the real service has: a clock in every answer.
///
/// Its folder is the one that `SERVICEKIT_DYNAMODB_LOCAL` names, or the one that `scripts/setup` fetches.
#[derive(Debug)]
pub struct DynamoDb {
    _process: Process,
    _folder: TempDir,
    inner: u16,
    outer: u16,
    shared: Arc<Shared>,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "read by tests")]
pub struct Call {
    /// What was asked for, such as `PutItem`.
    pub action: String,
    /// The status of the answer.
    pub status: u16,
    /// The capacity units that it took, as the server counts them.
    pub units: f64,
}

#[derive(Debug, Default)]
struct Shared {
    /// How far the server's clock is ahead of this host's, in milliseconds.
    ahead: AtomicI64,
    calls: Mutex<Vec<Call>>,
}

impl DynamoDb {
    /// Starts a server; `None` where there is none, unless `SERVICEKIT_REQUIRE_BACKENDS` is set.
    ///
    /// # Panics
    ///
    /// When it does not start, or is missing although it is required.
    #[must_use]
    pub fn start() -> Option<Self> {
        let folder = env::var_os("SERVICEKIT_DYNAMODB_LOCAL").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/dynamodb-local"),
            PathBuf::from,
        );
        if !is_there(Path::new("java")) {
            return missing(
                "java is missing; install it with `apt-get install default-jre-headless`",
            );
        }
        if !folder.join("DynamoDBLocal.jar").is_file() {
            let folder = folder.display();
            return missing(&format!(
                "there is no DynamoDB Local in {folder}; get it with `scripts/setup test`, or name its folder in \
                 SERVICEKIT_DYNAMODB_LOCAL"
            ));
        }
        // Somebody else may take a port between the choice and the start.
        let started = (0..5).find_map(|_| Self::try_start(&folder));
        Some(started.expect("DynamoDB Local starts"))
    }

    fn try_start(folder: &Path) -> Option<Self> {
        let own = tempfile::tempdir().expect("a temporary folder");
        let port = free_ports(1)[0];
        let mut command = Command::new("java");
        let mut library = std::ffi::OsString::from("-Djava.library.path=");
        library.push(folder.join("DynamoDBLocal_lib"));
        command.arg(library).args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg("-jar").arg(folder.join("DynamoDBLocal.jar"));
        command.args(["-inMemory", "-port", &port.to_string()]);
        let log = own.path().join("log");
        let mut process = Process::start(&command, &log).expect("java can be run");
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if process.has_ended() {
                return None;
            }
            let said = || fs::read_to_string(&log).unwrap_or_default();
            assert!(
                begun.elapsed() < PATIENCE,
                "it does not listen after {PATIENCE:?}: {}",
                said()
            );
            thread::sleep(Duration::from_millis(20));
        }
        let shared = Arc::default();
        let outer = serve(port, &shared).ok()?;
        Some(Self { _process: process, _folder: own, inner: port, outer, shared })
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.outer)
    }

    /// Where it listens without the proxy: there it tells no time.
    #[must_use]
    pub fn endpoint_without_clock(&self) -> String {
        format!("127.0.0.1:{}", self.inner)
    }

    /// Sets the server's clock: so far ahead of this host's, in milliseconds.
    pub fn set_ahead(&self, millis: i64) {
        self.shared.ahead.store(millis, Ordering::Relaxed);
    }

    /// The requests that were answered since the last call.
    #[must_use]
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Listens, and passes requests on to the server at `inner`; returns where.
fn serve(inner: u16, shared: &Arc<Shared>) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let shared = shared.clone();
    // It ends with the process; a test has few of them.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let shared = shared.clone();
            // A connection that breaks is nothing new to either side.
            thread::spawn(move || drop(pass(client, inner, &shared)));
        }
    });
    Ok(port)
}

fn pass(client: TcpStream, inner: u16, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, inner))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut to_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    while let Some(mut request) = Message::read(&mut client)? {
        let action = request.header("x-amz-target").unwrap_or_default();
        let action = action.rsplit('.').next().unwrap_or_default().to_owned();
        if action.ends_with("Item") || action == "Query" {
            // Nobody checks the signature here.
            request.body.splice(0..1, *b"{\"ReturnConsumedCapacity\":\"TOTAL\",");
        }
        request.write(&mut to_server)?;
        let Some(mut answer) = Message::read(&mut server)? else { return Ok(()) };
        answer.head.push(format!("Date: {}", date(shared.ahead.load(Ordering::Relaxed))));
        let status = answer.head[0].split(' ').nth(1).and_then(|status| status.parse().ok());
        let units = units(&answer.body);
        let call = Call { action, status: status.unwrap_or(0), units };
        shared.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        answer.write(&mut to_client)?;
    }
    Ok(())
}

/// A message of HTTP/1.1, its body in one piece.
struct Message {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Message {
    fn read(from: &mut BufReader<TcpStream>) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut message = Self { head, body: Vec::new() };
        if message.header("transfer-encoding").is_some() {
            while let length @ 1.. = chunk_length(from)? {
                message.read_body(from, length)?;
                from.read_line(&mut String::new())?;
            }
            from.read_line(&mut String::new())?;
        } else {
            let length = message.header("content-length").and_then(|length| length.parse().ok());
            message.read_body(from, length.unwrap_or(0))?;
        }
        Ok(Some(message))
    }

    fn read_body(&mut self, from: &mut BufReader<TcpStream>, length: usize) -> io::Result<()> {
        let begin = self.body.len();
        self.body.resize(begin + length, 0);
        from.read_exact(&mut self.body[begin..])
    }

    fn header(&self, wanted: &str) -> Option<String> {
        let mut headers = self.head.iter().filter_map(|line| line.split_once(':'));
        let (_, value) = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted))?;
        Some(value.trim().to_owned())
    }

    fn write(&self, to: &mut TcpStream) -> io::Result<()> {
        let is_framing = |line: &&String| {
            let line = line.to_ascii_lowercase();
            line.starts_with("content-length:") || line.starts_with("transfer-encoding:")
        };
        let mut bytes = Vec::new();
        for line in self.head.iter().filter(|line| !is_framing(line)) {
            write!(bytes, "{line}\r\n")?;
        }
        write!(bytes, "Content-Length: {}\r\n\r\n", self.body.len())?;
        bytes.extend_from_slice(&self.body);
        to.write_all(&bytes)
    }
}

fn chunk_length(from: &mut BufReader<TcpStream>) -> io::Result<usize> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)
}

/// The capacity units that an answer tells.
fn units(body: &[u8]) -> f64 {
    let answer: HashMap<String, serde_json::Value> =
        serde_json::from_slice(body).unwrap_or_default();
    answer.get("ConsumedCapacity").and_then(|used| used["CapacityUnits"].as_f64()).unwrap_or(0.0)
}

/// This host's time and so many milliseconds, as HTTP writes it (RFC 9110, section 5.6.7).
fn date(ahead: i64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = i64::try_from(now.as_millis()).unwrap_or(0) + ahead;
    let seconds = u64::try_from(millis / 1000).unwrap_or(0);
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 0;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let weekday = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!(
        "{weekday}, {:02} {} {year} {hour:02}:{minute:02}:{second:02} GMT",
        day + 1,
        MONTHS[month]
    )
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("server", &self.server).finish_non_exhaustive()
    }
}
