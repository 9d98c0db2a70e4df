//! The CouchDB store on the server that `SERVICEKIT_COUCHDB_URL` names: lease cycles against the same requests sent by bare HTTP,
//! a change to who follows a group, a hand-over among a hundred waiters, and ten thousand instances.
//!
//! ```sh
//! SERVICEKIT_COUCHDB_URL=http://USER:PASSWORD@HOST:5984 cargo run --release -p servicekit-benches --bin couchdb
//! ```
//!
//! What is compared takes turns, so that a busy machine slows both.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt as _, future::try_join};
use reqwest::{
    Client, Method,
    header::{CONTENT_TYPE, COOKIE, HeaderValue, SET_COOKIE},
};
use serde_json::{Value, json};
use servicekit::{
    Clock as _, Env, Label, Name, Namespace,
    clock::SystemClock,
    store::{Change, Expect, Group, Keep, Limits, Put, Store as _, WriteId},
};
use servicekit_benches::{
    Result,
    stores::{cycles, instances, median, request, wait_for},
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::server::CouchDb;

#[tokio::main]
async fn main() -> Result<()> {
    let server = CouchDb::start().ok_or("CouchDB is missing")?;
    if !server.is_real() {
        println!("this is express-pouchdb, whose figures tell nothing of CouchDB's");
    }
    let wanted = std::env::args().nth(1);
    let is_wanted = |part: &str| wanted.as_ref().is_none_or(|wanted| wanted == part);
    let address = server.database_at(&server.endpoint());
    let url = format!("couchdb:{address}");
    if is_wanted("cycles") {
        let backend = servicekit::connect(&url).await?;
        let mut bare = Bare::new(&address).await?;
        cycles(&backend, CYCLES, async || bare.cycle().await).await?;
    }
    if is_wanted("changes") {
        changes(&address).await?;
    }
    if is_wanted("hand-over") {
        hand_over(&url).await?;
    }
    if is_wanted("instances") {
        instances(&url, WATCHERS).await?;
    }
    Ok(())
}

const CYCLES: usize = 25;
/// Each reads all ten thousand at first.
const WATCHERS: u32 = 20;

/// A client that knows no store: HTTP, the session's cookie, and the revisions that it was told.
struct Bare {
    client: Client,
    base: String,
    session: Option<HeaderValue>,
    env: Env,
    revisions: HashMap<String, String>,
}

impl Bare {
    /// On a database of its own, which it makes, with the same design document: the server does the same for either.
    async fn new(address: &str) -> Result<Self> {
        let config = Config::parse(address, false)?;
        let server = format!("http://{}", config.endpoint);
        let mut bare = Self {
            client: Client::new(),
            base: format!("{server}/{}-bare", config.database),
            session: None,
            env: Env::system(),
            revisions: HashMap::new(),
        };
        if let (Some(name), Some(password)) = (&config.user, &config.password) {
            let body = json!({ "name": name, "password": password.as_str() }).to_string();
            let request = bare.client.post(format!("{server}/_session")).body(body);
            let answer = request.header(CONTENT_TYPE, "application/json").send().await?;
            let cookie = answer.headers().get(SET_COOKIE).ok_or("no session")?.to_str()?;
            let cookie = cookie.split(';').next().unwrap_or_default();
            bare.session = Some(HeaderValue::from_str(cookie)?);
        }
        bare.send(Method::PUT, "", None).await?;
        let ours = Couch::new(config.clone(), bare.env.clone(), Limits::default())?;
        ours.make_databases().await?;
        let there = std::mem::replace(&mut bare.base, format!("{server}/{}", config.database));
        let mut design = bare.send(Method::GET, DESIGN, None).await?;
        design.as_object_mut().ok_or("no design document")?.remove("_rev");
        bare.base = there;
        bare.send(Method::PUT, DESIGN, Some(design.to_string())).await?;
        Ok(bare)
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(session) = &self.session {
            request = request.header(COOKIE, session);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let answer = request.send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }

    /// The requests of a cycle, with documents of the same sizes: the ticket and the head at once, the head; the queue and the
    /// ticket's end at once, the head.
    async fn cycle(&mut self) -> Result<()> {
        if !self.revisions.contains_key(HEAD) {
            self.put(HEAD, 1000).await?;
        }
        let ticket = format!("/bare:lease:bench:t-{:03x}", self.env.random.below(4096));
        let head = format!("/{HEAD}?conflicts=true");
        let putting = self.send(Method::PUT, &ticket, Some(self.document(None, 240)));
        let (put, _) = try_join(putting, self.send(Method::GET, &head, None)).await?;
        let revision = put["rev"].as_str().ok_or("no revision")?;
        self.put(HEAD, 1000).await?;
        let queue = "/_all_docs?include_docs=true&conflicts=true&inclusive_end=false&startkey=%22bare%3Alease%3Abench%3A%22\
                     &endkey=%22bare%3Alease%3Abench%3B%22&limit=1200&skip=0";
        let deleting = format!("{ticket}?rev={revision}");
        let listing = self.send(Method::GET, queue, None);
        try_join(listing, self.send(Method::DELETE, &deleting, None)).await?;
        self.put(HEAD, 1000).await
    }

    /// Writes a document with a value of so many bytes.
    async fn put(&mut self, id: &str, size: usize) -> Result<()> {
        let document = self.document(self.revisions.get(id), size);
        let put = self.send(Method::PUT, &format!("/{id}"), Some(document)).await?;
        self.revisions.insert(id.into(), put["rev"].as_str().ok_or("no revision")?.into());
        Ok(())
    }

    fn document(&self, revision: Option<&String>, size: usize) -> String {
        let mut document = json!({
            "servicekit": 1,
            // A record is JSON in a string, with a quotation mark here and there.
            "value": "{\"field\":".repeat(size / 9),
            "write": self.env.random.id(),
            "ttl_ms": 60_000,
            "ends_ms": 1_795_263_002_000_u64,
        });
        if let Some(revision) = revision {
            document["_rev"] = revision.as_str().into();
        }
        document.to_string()
    }
}

const DESIGN: &str = "/_design/servicekit";
const HEAD: &str = "bare:lease:bench:head";
const CHANGES: usize = 300;

/// From the beginning of a put to its change at who follows, against bare puts.
async fn changes(address: &str) -> Result<()> {
    let (clock, env) = (SystemClock, Env::system());
    let mut bare = Bare::new(&address.replace("?", "-changes?")).await?;
    let open = || Couch::new(Config::parse(address, false)?, env.clone(), Limits::default());
    let (writer, reader) = (open()?, open()?);
    writer.make_databases().await?;
    let group = Group::of(&Namespace::default(), "bench");
    let mut followed = reader.watch(&group);
    followed.next().await.ok_or("the stream has ended")??;
    let (mut expect, mut trips, mut times) = (Expect::Absent, Vec::new(), Vec::new());
    for _ in 0..CHANGES {
        let began = clock.now();
        bare.put("bench", 300).await?;
        trips.push(clock.now().since(began));

        let write = WriteId::draw(&env.random);
        let value = "{\"field\":".repeat(33).into_bytes().into();
        let key = group.key("one".parse::<Name>()?);
        let put = Put { key, value, expect, keep: Keep::Durable, write: write.clone() };
        let began = clock.now();
        let seen = async {
            loop {
                match followed.next().await {
                    Some(Ok(Change::Put(record))) if record.write == write => {
                        return Result::Ok(clock.now().since(began));
                    }
                    Some(_) => {}
                    None => return Err("the stream has ended".into()),
                }
            }
        };
        let putting =
            async { Ok::<_, Box<dyn std::error::Error + Send + Sync>>(writer.put(&put).await?) };
        let (version, time) = try_join(putting, seen).await?;
        times.push(time);
        expect = Expect::At(version);
    }
    let (trip, time) = (median(&mut trips), median(&mut times));
    println!("bare put:                        {trip:8.2} ms");
    println!("a change to who follows:         {time:8.2} ms, {:.1} bare puts", time / trip);
    Ok(())
}

const WAITERS: usize = 100;
const HAND_OVERS: usize = 50;

async fn hand_over(url: &str) -> Result<()> {
    let (clock, lease) = (SystemClock, "handed".parse::<Label>()?);
    let backend = servicekit::connect(url).await?;
    let (mut ticket, _) = backend.leases.join(&lease, &request("first")?).await?;
    let mut waiting = Vec::new();
    for i in 0..WAITERS {
        let leases = servicekit::connect(url).await?.leases;
        waiting.push(wait_for(&leases, &lease, &format!("w{i}")).await?);
        backend.leases.renew(&ticket).await?;
    }
    clock.sleep(Duration::from_secs(5)).await;
    let mut times = Vec::new();
    for (next, granted) in waiting.into_iter().take(HAND_OVERS) {
        let began = clock.now();
        backend.leases.leave(&ticket).await?;
        times.push(granted.await?.since(began));
        ticket = next;
    }
    let time = median(&mut times);
    let most = times[HAND_OVERS - 1].as_secs_f64() * 1e3;
    println!(
        "leave and grant, 100 waiters:    {time:8.2} ms (the longest of {HAND_OVERS}: {most:.2} ms)"
    );
    Ok(())
}
