use std::{
    env,
    io::{self, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::{Member, free_ports, is_there, missing};

/// CouchDB: the one that `SERVICEKIT_COUCHDB_URL` names, as `http://user:password@host:5984`, or else its API by
/// `express-pouchdb`, on files in a folder.
///
/// That is in the folder that `SERVICEKIT_POUCHDB` names, or in the one that `scripts/setup` fills. How it differs, and what
/// comes of it (tests are in `servicekit-couch/tests/it`; each that looks at less on one of the two says so on stderr):
///
/// | it | because | so |
/// | --- | --- | --- |
/// | has sequences that are numbers | PouchDB counts | both kinds are tested, by a stub too |
/// | tells of no nodes and copies | it has no cluster | clusters are tested with a stub |
/// | takes no `_revs_limit`, and tells no sizes | PouchDB has neither | `doctor.rs` and `growth.rs` look at them on a real one |
/// | purges nothing | PouchDB cannot | `feed.rs`, `refusals.rs`: purges on a real one |
/// | asks nobody for a password | its users and roles are parts that are left out here: they are another implementation, of which nothing would follow for CouchDB's | `sessions.rs`, `doctor.rs` and the command's `couchdb.rs`: passwords, sessions, members and roles on a real one |
/// | runs `validate_doc_update` where that is asked for | it does so before it compares revisions, and takes a conflict for a refusal | `doctor.rs`: what is malformed is refused |
/// | refuses a write at a revision of what is not there | PouchDB always looks | `refusals.rs`: that CouchDB does, with the design document, on a real one |
/// | answers one request at a time | node has one thread | 10 s for a request of the suite; smaller batches in `refusals.rs` |
/// | begins the answer of a feed with its first line | express does | the client waits for it as for any line |
/// | has a clock that can be set, and may be killed | it is ours: `server.js` shows another `Date` | `clocks.rs`, `processes.rs`: not on a real one, whose clock and life are others' |
///
/// Made good in `server.js`: it takes the selector of a feed from the address alone, and lets the feeds of a deleted database
/// go on.
#[derive(Debug)]
pub struct CouchDb {
    own: Option<Member>,
    /// `user:password@`, or nothing.
    login: String,
    endpoint: String,
    databases: AtomicU64,
    /// The names that were given to tests.
    made: Mutex<Vec<String>>,
}

impl CouchDb {
    /// Starts a server, or uses a running one; `None` where there is none, unless `SERVICEKIT_REQUIRE_BACKENDS` is set.
    ///
    /// # Panics
    ///
    /// When it does not start, or is missing although it is required.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// Starts one that runs `validate_doc_update`, as a real one always does; but it does so before it compares revisions, so that
    /// a conflict may look like a refusal.
    ///
    /// # Panics
    ///
    /// As [`CouchDb::start`].
    #[must_use]
    pub fn start_validating() -> Option<Self> {
        Self::start_with(&["validation"])
    }

    fn start_with(parts: &[&str]) -> Option<Self> {
        if let Ok(url) = env::var("SERVICEKIT_COUCHDB_URL") {
            return Some(
                Self::at(&url).expect("SERVICEKIT_COUCHDB_URL is http://[user:password@]host:port"),
            );
        }
        let folder = env::var_os("SERVICEKIT_POUCHDB").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/couchdb"),
            PathBuf::from,
        );
        if !is_there(Path::new("node")) {
            return missing("node is missing; install it with `apt-get install nodejs`");
        }
        if !folder.join("node_modules/express-pouchdb").is_dir() {
            let folder = folder.display();
            return missing(&format!(
                "there is no express-pouchdb in {folder}; get it with `scripts/setup test`, name its folder in \
                 SERVICEKIT_POUCHDB, or a CouchDB in SERVICEKIT_COUCHDB_URL"
            ));
        }
        // Somebody else may take a port between the choice and the start.
        let own = (0..5).find_map(|_| try_start(&folder, parts)).expect("node starts");
        let endpoint = own.endpoint();
        Some(Self {
            own: Some(own),
            login: String::new(),
            endpoint,
            databases: 0.into(),
            made: Mutex::default(),
        })
    }

    fn at(url: &str) -> Option<Self> {
        let place = url.strip_prefix("http://")?.trim_end_matches('/');
        let (login, endpoint) = match place.rsplit_once('@') {
            Some((login, endpoint)) => (format!("{login}@"), endpoint),
            None => (String::new(), place),
        };
        let endpoint = endpoint.contains(':').then(|| endpoint.to_owned())?;
        Some(Self { own: None, login, endpoint, databases: 0.into(), made: Mutex::default() })
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// What follows the scheme in the address of a database that nobody has used yet, at `endpoint`, which is this server's or
    /// a proxy's before it.
    #[must_use]
    pub fn database_at(&self, endpoint: &str) -> String {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        // A server that goes on running has what earlier tests left.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let process = std::process::id();
        let name = format!("test-{now}-{process}-{number}");
        let rest = format!("//{}{endpoint}/{name}?create=true", self.login);
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        rest
    }

    /// Whether it is a CouchDB, and not something like it.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.own.is_none()
    }

    /// The server that this started, to be killed and started again with its data; `None` for one that ran before.
    #[must_use]
    pub fn own(&mut self) -> Option<&mut Member> {
        self.own.as_mut()
    }

    /// Sets the clock that its answers show: so far ahead of this host's, in milliseconds.
    ///
    /// # Panics
    ///
    /// On a real CouchDB, whose clock is nobody's to set.
    pub fn set_ahead(&self, millis: i64) {
        assert!(self.own.is_some(), "this server's clock can be set");
        let answer = self.send("POST", &format!("_test/ahead/{millis}")).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Sends a request without a body, and returns the answer as it comes.
    fn send(&self, method: &str, path: &str) -> io::Result<String> {
        let login = match self.login.trim_end_matches('@') {
            "" => String::new(),
            login => format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(login)),
        };
        let mut stream = TcpStream::connect(&self.endpoint)?;
        let request = format!(
            "{method} /{path} HTTP/1.1\r\nHost: test\r\n{login}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// A server that goes on running is left as it was.
impl Drop for CouchDb {
    fn drop(&mut self) {
        if self.own.is_some() {
            return;
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        for name in made.iter().flat_map(|name| [name.clone(), format!("{name}-sessions")]) {
            // It may never have been made, and nobody can be told.
            let _ = self.send("DELETE", &name);
        }
    }
}

fn try_start(folder: &Path, parts: &[&str]) -> Option<Member> {
    let own = tempfile::tempdir().expect("a temporary folder");
    let port = free_ports(1)[0];
    let mut modules = std::ffi::OsString::from("NODE_PATH=");
    modules.push(folder.join("node_modules"));
    let mut command = Command::new("env");
    // It writes its log where it stands.
    command.arg("-C").arg(own.path()).arg(modules).arg("node");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/couchdb/server.js"));
    command.arg(port.to_string()).arg(own.path()).args(parts);
    let mut member = Member::new(command, own, port);
    member.wait_until_it_listens().then_some(member)
}
