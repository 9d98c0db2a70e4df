//! What a doctor sees of the databases: the server, its nodes, the room that is used, what guards them, and the time.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::join;
use reqwest::Method;
use serde::Deserialize;
use servicekit_core::{Doctor, Effect, Error, Finding, Kind, Result, Severity, clock::timeout};

use crate::{
    database::{BEATS_KEPT, Database, Info, Sizes},
    setup::{ROLES, VALIDATE},
    store::{Couch, MAX_VALUE_BYTES},
};

/// Examines the databases, and then what core examines of every store.
#[derive(Debug)]
pub(crate) struct DatabaseDoctor {
    couch: Couch,
    next: Arc<dyn Doctor>,
}

/// A clock that is further off than this, in milliseconds, makes certificates and logs hard to understand.
const FAR: u64 = 30_000;
/// A file that is this much larger than what is in it wants to be compacted, unless it is small.
const FRAGMENTED: u64 = 4;
const SMALL: u64 = 64 << 20;
/// So much larger may a document be than its value: base64, and escaped text.
const GROWS: usize = 2;

const CLUSTER: &str = "cluster";
/// What core says of it is what the store could do.
const CHANGES: &str = "changes";
/// How long the feed may show no sign of life, of which there should be two a second.
const HEARD: Duration = Duration::from_secs(3);

const SET_UP: &str = "an administrator runs: servicekit doctor --setup";

#[derive(Deserialize)]
struct Session {
    #[serde(rename = "userCtx")]
    user: User,
}

#[derive(Default, Deserialize)]
struct User {
    name: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

impl DatabaseDoctor {
    pub(crate) fn new(couch: Couch, next: Arc<dyn Doctor>) -> Self {
        Self { couch, next }
    }

    fn database(&self) -> &Database {
        &self.couch.0.database
    }

    async fn server(&self) -> Finding {
        let check = "server";
        match self.database().version().await {
            Ok(version) if version.starts_with(['0', '1', '2']) => {
                let detail = format!("CouchDB {version}, which nobody has tried");
                Finding::warning(check, detail, "update to CouchDB 3")
            }
            Ok(version) => Finding::fine(check, format!("CouchDB {version}")),
            Err(error) => {
                let remedy = match error.kind() {
                    Kind::Denied => "give the right user and password",
                    _ => "see that the address is right, and that the server runs",
                };
                Finding::problem(check, error.message(), remedy)
            }
        }
    }

    async fn cluster(&self) -> Finding {
        let check = CLUSTER;
        // So that they are made, where that is wanted, before they are looked at.
        let seen = match self.database().open().await {
            Ok(seen) => seen,
            Err(error) => {
                let remedy = match error.kind() {
                    Kind::Denied => "give the right user and password, and make the user a member",
                    _ => {
                        "see the message; what is missing an administrator makes: servicekit doctor --setup"
                    }
                };
                return Finding::problem(check, format!("{error}"), remedy);
            }
        };
        let shape = &seen.shape;
        match &seen.no_leases {
            Some(why) if !seen.is_one_place => {
                let remedy =
                    "use leases on another store, or on a CouchDB of one node and one copy";
                Finding::problem(check, format!("leases are refused: {why}"), remedy)
            }
            _ if seen.is_one_place => Finding::fine(check, shape),
            _ => {
                let detail = format!("{shape}: two may hold the same lease while nodes are apart");
                Finding::warning(check, detail, "leave out unsafe-leases=true")
            }
        }
    }

    /// What else is lost where not all is written in one place.
    async fn apart(&self) -> Option<Finding> {
        let seen = self.database().open().await.ok().filter(|seen| !seen.is_one_place)?;
        let detail = format!(
            "{}: while nodes are apart each side takes instances of the other for lost, and may make a CA of its own, of which \
             one stays",
            seen.shape
        );
        let remedy =
            "make the first certificate while all nodes are there; see docs/backends/couchdb.md";
        Some(Finding::warning("registry and certificates", detail, remedy))
    }

    /// What is said of one of the two.
    async fn examine_database(&self, name: &str) -> Vec<Finding> {
        let database = self.database();
        let info = match database.info_if_there(name).await {
            Ok(Some(info)) => info,
            Ok(None) => return vec![Finding::problem(name, "it is not there", SET_UP)],
            Err(error) => return vec![untold(name, &error)],
        };
        let (design, security) = join!(database.design(name), database.security(name));
        let mut findings = vec![room(name, &info)];
        let check = format!("design document of {name}");
        findings.push(match design {
            Ok(Some(design)) if design.validate_doc_update == VALIDATE => {
                Finding::fine(check, "refuses what is malformed")
            }
            Ok(Some(_)) => Finding::warning(check, "not the one of this servicekit", SET_UP),
            Ok(None) if name == database.names()[0] => {
                let detail = "missing: leases are refused, for CouchDB would take the renewal of what is not there any more; \
                              and whoever may write may write anything";
                Finding::problem(check, detail, SET_UP)
            }
            Ok(None) => {
                let detail = "missing: a beat of a session that was purged is taken, and whoever may write may write anything";
                Finding::warning(check, detail, SET_UP)
            }
            Err(error) => untold(&check, &error),
        });
        let check = format!("members of {name}");
        findings.push(match security {
            Ok(Some(security)) if security.has_roles() => {
                Finding::fine(check, "each may write what its role is for")
            }
            Ok(Some(security)) if !security.is_open() => {
                Finding::fine(check, "each may write everything: roles are not set up")
            }
            Ok(_) => {
                Finding::warning(check, "anybody may read and write it, without a password", SET_UP)
            }
            Err(error) => untold(&check, &error),
        });
        findings
    }

    /// Whether the feed of changes arrives as it comes.
    async fn feed(&self) -> Finding {
        let check = CHANGES;
        let [records, _] = self.database().names();
        let path = format!("{records}/_changes?feed=continuous&since=now&heartbeat=500");
        let clock = &*self.couch.0.env.clock;
        let begun = async {
            let mut feed = self.database().stream(&path, b"{}".to_vec()).await?;
            Ok::<_, Error>(feed.chunk().await.is_ok_and(|chunk| chunk.is_some()))
        };
        match timeout(clock, HEARD, begun).await {
            Ok(Ok(true)) => Finding::fine(check, "pushed, and not held back"),
            Ok(Err(error)) if error.kind() == Kind::Denied => untold(check, &error),
            Ok(Err(error)) => Finding::problem(check, error.message(), "see the other findings"),
            Ok(Ok(false)) | Err(_) => Finding::problem(
                check,
                format!("the feed of changes showed nothing within {HEARD:?}"),
                "see that no proxy before CouchDB buffers it",
            ),
        }
    }

    async fn revisions(&self) -> Finding {
        let check = "history of beats";
        match self.database().revisions_kept().await {
            Ok(Some(kept)) if kept > BEATS_KEPT => {
                let detail = format!("{kept} revisions of each session are remembered");
                Finding::warning(check, detail, SET_UP)
            }
            Ok(Some(kept)) => Finding::fine(check, format!("{kept} revisions of each session")),
            Ok(None) => Finding::fine(check, "this server has no limit of revisions"),
            Err(error) => untold(check, &error),
        }
    }

    async fn largest_document(&self) -> Finding {
        let check = "largest document";
        let needed = MAX_VALUE_BYTES * GROWS;
        let path = "_node/_local/_config/couchdb/max_document_size";
        match self.get::<String>(path).await.map(|size| size.parse::<usize>()) {
            Ok(Ok(size)) if size < needed => {
                let detail = format!("{size} bytes: a large certificate may be refused");
                Finding::warning(check, detail, format!("raise max_document_size to {needed}"))
            }
            Ok(Ok(size)) => Finding::fine(check, format!("{size} bytes")),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => {
                Finding::fine(check, "as CouchDB comes, which is enough")
            }
            Ok(Err(_)) => Finding::fine(check, "it could not be told"),
            Err(error) => untold(check, &error),
        }
    }

    async fn user(&self) -> Finding {
        let check = "user";
        let Session { user: User { name, roles } } = match self.get("_session").await {
            Ok(session) => session,
            Err(error) => return untold(check, &error),
        };
        let name = name.unwrap_or_else(|| "nobody".into());
        let is = |role: &str| roles.iter().any(|has| has == role);
        let may = if is("_admin") {
            "an administrator, who may do everything".to_owned()
        } else {
            let has: Vec<_> = ROLES.into_iter().filter(|role| is(role)).collect();
            if has.is_empty() { "without a role of servicekit".into() } else { has.join(", ") }
        };
        Finding::fine(check, format!("{name}, {may}"))
    }

    /// Once there was an answer.
    fn clock(&self) -> Finding {
        let check = "clock";
        let Some(ahead) = self.database().http.clock.ahead() else {
            let detail = "no answer had a Date: who is alive is judged by the hosts' own clocks";
            return Finding::warning(
                check,
                detail,
                "see what removes that header; CouchDB sends it",
            );
        };
        let off = ahead.unsigned_abs();
        let side = if ahead > 0 { "ahead of" } else { "behind" };
        let detail = format!("this host's is {}.{:03} s {side} CouchDB's", off / 1000, off % 1000);
        if off > FAR {
            return Finding::warning(check, detail, "set it, and keep it so with NTP");
        }
        Finding::fine(check, detail)
    }

    async fn get<T: for<'a> Deserialize<'a>>(&self, path: &str) -> Result<T> {
        self.database().http.ask(Effect::Nothing, Method::GET, path, None).await?.read()
    }
}

#[async_trait]
impl Doctor for DatabaseDoctor {
    async fn examine(&self) -> Vec<Finding> {
        let server = self.server().await;
        if server.severity == Severity::Problem {
            // All else would say the same, after as long a time each.
            return vec![server];
        }
        let mut findings = vec![server, self.cluster().await];
        findings.extend(self.apart().await);
        let [records, beats] = self.database().names();
        let (feed, records, beats, revisions, largest, user, next) = join!(
            self.feed(),
            self.examine_database(records),
            self.examine_database(beats),
            self.revisions(),
            self.largest_document(),
            self.user(),
            self.next.examine(),
        );
        findings.extend(records.into_iter().chain(beats));
        findings.extend([revisions, largest, user, feed, self.clock()]);
        // What core tells of leases is of what one node could do, with the design document.
        let seen = self.database().open().await;
        let refused = !seen.is_ok_and(|seen| seen.is_one_place && seen.is_guarded);
        findings.extend(
            next.into_iter().filter(|finding| {
                finding.check != CHANGES && !(refused && finding.check == "leases")
            }),
        );
        findings
    }

    async fn set_up(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for name in self.database().names() {
            let check = format!("setup of {name}");
            findings.push(match self.database().set_up(name).await {
                Ok(made) if made.is_empty() => Finding::fine(check, "all was there"),
                Ok(made) => Finding::fine(check, format!("made {}", made.join(", "))),
                Err(error) => Finding::problem(
                    check,
                    error.to_string(),
                    "give the user and password of an administrator",
                ),
            });
        }
        findings
    }
}

fn room(name: &str, info: &Info) -> Finding {
    let Sizes { file, active } = info.sizes;
    let detail = format!(
        "documents: {}, deleted: {}; {} kB of data in {} kB",
        info.doc_count,
        info.doc_del_count,
        active / 1000,
        file / 1000
    );
    if file > SMALL && file / FRAGMENTED > active {
        let remedy = format!("curl -X POST -H 'Content-Type: application/json' …/{name}/_compact");
        return Finding::warning(name, detail, remedy);
    }
    Finding::fine(name, detail)
}

/// Looking at these takes rights that servicekit's own work does not.
fn untold(check: &str, error: &Error) -> Finding {
    let why = match error.kind() {
        Kind::Denied => "this user may not see it".to_owned(),
        _ => format!("it could not be told: {}", error.message()),
    };
    Finding::fine(check, why)
}
