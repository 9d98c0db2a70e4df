//! What the beats of a hundred nodes and a thousand lease cycles leave behind: rows of the feeds of changes, and bytes, before
//! and after a compaction. The beats of as many minutes as `SERVICEKIT_BEAT_MINUTES` says, one if it does not.

use std::{collections::BTreeSet, env, time::Duration};

use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::{Value, json};
use servicekit_core::{
    Backend, Env, Instance, Label, Namespace, State,
    lease::{Request, Standing, Term},
    registry::Claim,
    store::Limits,
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::server::CouchDb;

use crate::common::Other;

const NODES: usize = 100;
/// That of `--detect-within 15s`; a node beats three times within it.
const TTL: Duration = Duration::from_secs(12);
const BEATS_A_MINUTE: usize = 15;
const CYCLES: usize = 1000;

/// One database, as anybody sees it.
struct Seen {
    other: Other,
    name: String,
}

impl Seen {
    async fn ask(&self, method: Method, path: &str) -> Value {
        // A compaction is asked for in JSON.
        let body = (method == Method::POST).then(|| json!({}));
        self.other.send(method, &format!("{}{path}", self.name), body).await.1
    }

    /// The rows of the feed but for the design document's, and how many of them are of documents that were deleted.
    async fn rows(&self) -> (BTreeSet<String>, usize) {
        let feed = self.ask(Method::GET, "/_changes").await;
        let rows = feed["results"].as_array().unwrap();
        let deleted = rows.iter().filter(|row| row["deleted"] == true).count();
        let ids = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned());
        (ids.filter(|id| !id.starts_with("_design/")).collect(), deleted)
    }

    async fn show(&self, when: &str) {
        let (rows, deleted) = self.rows().await;
        let info = self.ask(Method::GET, "").await;
        // Not every server tells its sizes.
        let sizes = info
            .get("sizes")
            .map(|sizes| format!("; {} bytes, {} of them in use", sizes["file"], sizes["active"]));
        let (count, sizes) = (rows.len(), sizes.unwrap_or_default());
        println!("{when}: {count} rows, {deleted} of them deleted{sizes}");
    }

    async fn compact(&self) {
        let clock = Env::system().clock;
        assert_eq!(self.ask(Method::POST, "/_compact").await["ok"], true);
        while self.ask(Method::GET, "").await["compact_running"] == true {
            clock.sleep(Duration::from_millis(50)).await;
        }
    }

    async fn show_and_compact(&self, what: &str) {
        self.show(what).await;
        self.compact().await;
        self.show(&format!("{what}, compacted")).await;
    }
}

struct World {
    backend: Backend,
    records: Seen,
    beats: Seen,
    _server: CouchDb,
}

async fn world() -> Option<World> {
    let server = CouchDb::start()?;
    let limits = Limits { attempt: Duration::from_secs(20), total: Duration::from_secs(60) };
    let rest = server.database_at(&server.endpoint());
    let couch = Couch::new(Config::parse(&rest, false).unwrap(), Env::system(), limits).unwrap();
    couch.make_databases().await.unwrap();
    let backend = servicekit_couch::backend(couch, Namespace::default(), Env::system(), limits);
    let other = Other::at(&rest);
    let seen = |name: String| Seen { other: other.clone(), name };
    let (records, beats) = (other.database.clone(), format!("{}-sessions", other.database));
    Some(World { backend, records: seen(records), beats: seen(beats), _server: server })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_leave_no_row_behind() {
    let Some(World { backend, records, beats, _server }) = world().await else { return };
    let minutes = env::var("SERVICEKIT_BEAT_MINUTES").map_or(1, |text| text.parse().unwrap());
    let registry = &backend.registry;
    let nodes = (0..NODES).map(async |node| {
        let session = registry.open(&format!("n{node}"), TTL).await?;
        let id = format!("web-{node}").parse().unwrap();
        let now = Env::system().clock.wall();
        let mut instance = Instance::starting("web".parse().unwrap(), id, "10.0.0.1", now);
        instance.change(State::Up, "rise 1", "200 OK", now);
        registry.put(&session, &Claim::new(), &instance).await.map(|_| session)
    });
    let sessions = try_join_all(nodes).await.unwrap();
    let (before, beaten) = (records.rows().await, beats.rows().await);
    let since = records.ask(Method::GET, "/_changes").await["last_seq"].clone();
    beats.show("sessions of 100 nodes").await;
    for _ in 0..minutes * BEATS_A_MINUTE {
        try_join_all(sessions.iter().map(|session| registry.beat(session))).await.unwrap();
    }
    beats.show_and_compact(&format!("with the beats of {minutes} minutes")).await;

    let (rows, deleted) = beats.rows().await;
    assert_eq!((rows.len(), deleted), (NODES, beaten.1), "a row for each session, and no more");
    assert_eq!(records.rows().await, before);
    let since = since.as_str().map_or_else(|| since.to_string(), str::to_owned);
    let later = records.ask(Method::GET, &format!("/_changes?since={since}")).await;
    assert_eq!(later["results"].as_array().map(Vec::len), Some(0), "beats wake nobody else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_leave_rows_of_few_names_behind() {
    let Some(World { backend, records, _server, .. }) = world().await else { return };
    let lease: Label = "backup".parse().unwrap();
    for cycle in 0..CYCLES {
        let request = Request {
            // Each time somebody else.
            holder: format!("p-{cycle}").parse().unwrap(),
            term: Term::Attended { ttl: TTL },
            slots: 1,
            wait: None,
            note: String::new(),
        };
        let (ticket, standing) = backend.leases.join(&lease, &request).await.unwrap();
        assert!(matches!(standing, Standing::Granted(_)), "{standing:?}");
        backend.leases.leave(&ticket).await.unwrap();
    }
    records.show_and_compact("after 1,000 lease cycles").await;

    let (rows, deleted) = records.rows().await;
    let tickets: BTreeSet<_> = rows.iter().filter(|id| is_ticket(id)).collect();
    assert_eq!(tickets.len(), deleted, "what was deleted is a ticket");
    let others: Vec<_> = rows.iter().filter(|id| !is_ticket(id)).collect();
    assert!(others.len() <= 2, "the head, and the name of the lease: {others:?}");
    assert!(deleted < CYCLES, "names are used again");
}

/// One of 4,096 ids, however many tickets there were.
fn is_ticket(id: &str) -> bool {
    let number = id.strip_prefix("default:lease:backup:t-").unwrap_or_default();
    number.len() == 3 && number.bytes().all(|digit| digit.is_ascii_hexdigit())
}
