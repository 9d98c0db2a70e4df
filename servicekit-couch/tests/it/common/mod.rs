//! What tests on a real database share.

pub(crate) mod stub;

use reqwest::{Client, Method};
use serde_json::Value;
use servicekit_core::{
    Backend, Env, Name, Namespace,
    store::{Expect, Group, Keep, Key, Limits, Put, WriteId},
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::server::CouchDb;

/// A store on the database at `rest`, what follows the scheme of an address.
pub(crate) fn open(rest: &str) -> Couch {
    open_with(rest, Env::system())
}

/// The public traits on it, as a process has them.
pub(crate) fn backend(rest: &str) -> Backend {
    let (namespace, env, limits) = (Namespace::default(), Env::system(), Limits::default());
    servicekit_couch::backend(open(rest), namespace, env, limits)
}

pub(crate) fn open_with(rest: &str, env: Env) -> Couch {
    Couch::new(Config::parse(rest, false).unwrap(), env, Limits::default()).unwrap()
}

const DESIGN: &str = "_design/servicekit";

pub(crate) fn tests() -> Group {
    Group::of(&Namespace::default(), "tests")
}

pub(crate) fn lease() -> Group {
    Group::scoped(&Namespace::default(), "lease", &"web".parse().unwrap())
}

pub(crate) fn key(group: &Group) -> Key {
    group.key("a".parse::<Name>().unwrap())
}

pub(crate) fn put(key: Key) -> Put {
    let value = (*b"{}").into();
    Put { key, value, expect: Expect::Absent, keep: Keep::Durable, write: WriteId::new("mine") }
}

/// Somebody else with the same rights, who uses a database as anybody could.
#[derive(Clone)]
pub(crate) struct Other {
    client: Client,
    server: String,
    login: Option<(String, String)>,
    /// The database of records.
    pub(crate) database: String,
}

impl Other {
    /// What follows the scheme in the address of a new database, which is made, and somebody else there.
    pub(crate) async fn start(server: &CouchDb) -> (String, Self) {
        let rest = server.database_at(&server.endpoint());
        open(&rest).make_databases().await.unwrap();
        let other = Self::at(&rest);
        (rest, other)
    }

    pub(crate) fn at(rest: &str) -> Self {
        let place = rest.trim_start_matches("//").split('?').next().unwrap();
        let (login, place) = match place.rsplit_once('@') {
            Some((login, place)) => (login.split_once(':'), place),
            None => (None, place),
        };
        let (endpoint, database) = place.split_once('/').unwrap();
        Self {
            client: Client::builder().no_proxy().build().unwrap(),
            server: format!("http://{endpoint}"),
            login: login.map(|(user, password)| (user.to_owned(), password.to_owned())),
            database: database.to_owned(),
        }
    }

    /// What the server answers to a request for `path`, below the server: its status, and its JSON if there is any.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}/{path}", self.server));
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Does something to the database of records, and to that of beats.
    pub(crate) async fn both(&self, method: Method) {
        for name in [self.database.clone(), format!("{}-sessions", self.database)] {
            let (status, answer) = self.send(method.clone(), &name, None).await;
            assert!(matches!(status, 200..=202), "{name}: {status} {answer}");
        }
    }

    /// Writes a document, whatever there was.
    pub(crate) async fn write(&self, id: &str, document: Value) -> Value {
        let (status, answer) =
            self.send(Method::PUT, &format!("{}/{id}", self.database), Some(document)).await;
        assert_eq!(status, 201, "{id}: {answer}");
        answer
    }

    pub(crate) async fn read(&self, id: &str) -> Value {
        let path = format!("{}/{id}?conflicts=true", self.database);
        self.send(Method::GET, &path, None).await.1
    }

    /// Adds a revision that conflicts with those that are there, as replication and the end of a split do: one that wins
    /// against them, or loses, among revisions of one generation.
    pub(crate) async fn conflict(&self, id: &str, wins: bool, mut document: Value) -> String {
        let there = self.read(id).await;
        let generation = there["_rev"].as_str().unwrap().split('-').next().unwrap();
        let rev = format!("{generation}-{}", if wins { "f" } else { "0" }.repeat(32));
        document["_id"] = id.into();
        document["_rev"] = rev.clone().into();
        let body = serde_json::json!({ "new_edits": false, "docs": [document] });
        // The design document lets nothing of a lease in that comes so.
        let design = self.without_design().await;
        let path = format!("{}/_bulk_docs", self.database);
        let (status, answer) = self.send(Method::POST, &path, Some(body)).await;
        assert_eq!((status, answer), (201, Value::Array(Vec::new())));
        self.write(DESIGN, design).await;
        rev
    }

    /// Deletes the design document; returns what it was.
    pub(crate) async fn without_design(&self) -> Value {
        let mut design = self.read(DESIGN).await;
        let rev = design["_rev"].as_str().unwrap();
        let path = format!("{}/{DESIGN}?rev={rev}", self.database);
        assert_eq!(self.send(Method::DELETE, &path, None).await.0, 200);
        design.as_object_mut().unwrap().remove("_rev");
        design
    }
}
