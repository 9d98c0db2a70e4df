//! What a doctor says, what it sets up, and what each role may do then.

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use servicekit_core::{
    Backend, Env, Finding, Instance, Kind, Namespace, Result, Severity, State,
    lease::{Request, Standing, Term},
    registry::Claim,
    store::{Expect, Limits},
};
use servicekit_testkit::server::{CouchDb, skipped};

use crate::common::{Other, open, stub::stub};

const TTL: Duration = Duration::from_secs(60);

fn backend(rest: &str) -> Backend {
    let limits = Limits { attempt: Duration::from_secs(5), total: Duration::from_secs(10) };
    servicekit_couch::backend(open(rest), Namespace::default(), Env::system(), limits)
}

#[track_caller]
fn of<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("{check} is not in {findings:#?}"))
}

fn without_create(rest: &str) -> &str {
    rest.split_once('?').unwrap().0
}

#[tokio::test]
async fn a_doctor_names_what_is_missing_and_makes_it_when_asked() {
    let Some(server) = CouchDb::start() else { return };
    let rest = server.database_at(&server.endpoint());
    let doctor = backend(without_create(&rest)).doctor;
    let database = Other::at(&rest).database;
    let findings = doctor.examine().await;
    for check in [&*database, "cluster"] {
        assert_eq!(of(&findings, check).severity, Severity::Problem, "{findings:#?}");
    }
    assert!(of(&findings, "cluster").remedy.as_ref().unwrap().contains("--setup"));

    let made = doctor.set_up().await;
    assert!(of(&made, &format!("setup of {database}")).detail.contains("the database, the design"));
    let again = doctor.set_up().await;
    for finding in made.iter().chain(&again) {
        assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
    }
    assert!(again.iter().all(|finding| finding.detail == "all was there"), "{again:?}");

    let findings = doctor.examine().await;
    let well = findings.iter().all(|finding| {
        let open = !server.is_real() && finding.check.starts_with("members of");
        open || finding.severity == Severity::Fine
    });
    assert!(well, "{findings:#?}");
    for check in ["server", "cluster", "clock", "operations", "user", "largest document"] {
        of(&findings, check);
    }
}

#[tokio::test]
async fn a_doctor_warns_of_what_somebody_changed() {
    let Some(server) = CouchDb::start() else { return };
    let (rest, other) = Other::start(&server).await;
    let doctor = backend(&rest).doctor;
    let check = format!("design document of {}", other.database);
    assert_eq!(of(&doctor.examine().await, &check).severity, Severity::Fine);
    other.without_design().await;
    assert_eq!(of(&doctor.examine().await, &check).severity, Severity::Problem);
    doctor.set_up().await;
    assert_eq!(of(&doctor.examine().await, &check).severity, Severity::Fine);
    let mut design = other.read("_design/servicekit").await;
    design["validate_doc_update"] = "function () {}".into();
    design["views"] = json!({});
    other.write("_design/servicekit", design).await;
    if server.is_real() {
        let path = format!("{}-sessions/_revs_limit", other.database);
        assert_eq!(other.send(Method::PUT, &path, Some(json!(1000))).await.0, 200);
        let findings = doctor.examine().await;
        assert_eq!(of(&findings, "history of beats").severity, Severity::Warning);
    }
    assert_eq!(of(&doctor.examine().await, &check).severity, Severity::Warning);
    doctor.set_up().await;
    let findings = doctor.examine().await;
    assert_eq!(of(&findings, &check).severity, Severity::Fine);
    assert_eq!(of(&findings, "history of beats").severity, Severity::Fine);
    // What others put there stays.
    assert_eq!(other.read("_design/servicekit").await["views"], json!({}));
}

#[tokio::test]
async fn a_doctor_sees_what_may_become_a_problem() {
    let endpoint = stub(|request, _| match request {
        "GET /" => (200, "", r#"{"couchdb":"Welcome","version":"2.3.1"}"#),
        "GET /_membership" => (200, "", r#"{"cluster_nodes":["a","b","c"]}"#),
        "GET /fleet" | "GET /fleet-sessions" => {
            (200, "", r#"{"cluster":{"n":3,"q":2},"sizes":{"file":500000000,"active":1000000}}"#)
        }
        "GET /fleet/_security" => (200, "", r#"{"members":{}}"#),
        "GET /fleet-sessions/_revs_limit" => (200, "", "1000"),
        "GET /_node/_local/_config/couchdb/max_document_size" => (200, "", r#""100000""#),
        "GET /_session" => (200, "", r#"{"userCtx":{"name":null,"roles":[]}}"#),
        // The end of it, and no sign of life.
        _ if request.starts_with("POST /fleet/_changes") => (200, "", ""),
        _ if request.ends_with("_design/servicekit") => {
            (404, "", r#"{"error":"not_found","reason":"missing"}"#)
        }
        _ => (403, "", r#"{"error":"forbidden","reason":"not here"}"#),
    })
    .await;
    let findings = backend(&format!("//{endpoint}/fleet")).doctor.examine().await;
    for (check, severity, says) in [
        ("server", Severity::Warning, "2.3.1"),
        ("cluster", Severity::Problem, "leases are refused: the database has 3 copies on 3 nodes"),
        ("fleet", Severity::Warning, "1000 kB of data in 500000 kB"),
        ("design document of fleet", Severity::Problem, "missing: leases are refused"),
        ("design document of fleet-sessions", Severity::Warning, "missing"),
        ("registry and certificates", Severity::Warning, "takes instances of the other for lost"),
        ("members of fleet", Severity::Warning, "anybody"),
        ("members of fleet-sessions", Severity::Fine, "may not see it"),
        ("history of beats", Severity::Warning, "1000"),
        ("changes", Severity::Problem, "showed nothing"),
        ("largest document", Severity::Warning, "100000 bytes"),
        ("user", Severity::Fine, "nobody"),
        ("clock", Severity::Warning, "no answer had a Date"),
        ("operations", Severity::Problem, "not here"),
    ] {
        let finding = of(&findings, check);
        assert_eq!(finding.severity, severity, "{finding:?}");
        assert!(finding.detail.contains(says), "{finding:?}");
    }
    let risky = backend(&format!("//{endpoint}/fleet?unsafe-leases=true")).doctor.examine().await;
    assert_eq!(of(&risky, "cluster").severity, Severity::Warning);
}

/// A database that is set up, and users in it: one for each role, and `nobody-s` without any.
async fn people(server: &CouchDb) -> (Other, impl AsyncFn(&str) -> Backend) {
    let rest = server.database_at(&server.endpoint());
    let other = Other::at(&rest);
    for finding in backend(&rest).doctor.set_up().await {
        assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
    }
    let (database, admin) = (other.database.clone(), other.clone());
    let place = without_create(&rest).split_once('@').unwrap().1.to_owned();
    let login = async move |role: &str| {
        let name = format!("{role}-{database}");
        let user = json!({ "name": name, "password": "hush", "roles": [role], "type": "user" });
        let path = format!("_users/org.couchdb.user:{name}");
        assert_eq!(admin.send(Method::PUT, &path, Some(user)).await.0, 201);
        backend(&format!("//{name}:hush@{place}"))
    };
    (other, login)
}

async fn forget(other: &Other) {
    for role in ["servicekit-reader", "servicekit-agent", "servicekit-issuer", "stranger"] {
        let path = format!("_users/org.couchdb.user:{role}-{}", other.database);
        let (_, user) = other.send(Method::GET, &path, None).await;
        if let Some(rev) = user["_rev"].as_str() {
            other.send(Method::DELETE, &format!("{path}?rev={rev}"), None).await;
        }
    }
}

async fn reads(backend: &Backend) -> Result<()> {
    let web = "web".parse()?;
    backend.registry.labels().await?;
    backend.registry.list(&web).await?;
    backend.registry.watch(&web).next().await.unwrap()?;
    backend.leases.names().await?;
    backend.leases.inspect(&web).await?;
    backend.certs.list("").await.map(drop)
}

async fn registers(backend: &Backend) -> Result<()> {
    let registry = &backend.registry;
    let session = registry.open("node", TTL).await?;
    let now = Env::system().clock.wall();
    let mut instance = Instance::starting("web".parse()?, "web-1".parse()?, "10.0.0.1", now);
    instance.change(State::Up, "rise 1", "200 OK", now);
    let claim = Claim::new();
    registry.put(&session, &claim, &instance).await?;
    registry.beat(&session).await?;
    registry.remove(&claim, &instance.label, &instance.service_id).await?;
    registry.close(&session).await
}

async fn takes_a_lease(backend: &Backend) -> Result<()> {
    let leases = &backend.leases;
    let request = Request {
        holder: "one".parse()?,
        term: Term::Attended { ttl: TTL },
        slots: 1,
        wait: Some(TTL),
        note: String::new(),
    };
    let (ticket, standing) = leases.join(&"web".parse()?, &request).await?;
    assert!(matches!(standing, Standing::Granted(_)), "{standing:?}");
    leases.renew(&ticket).await?;
    leases.leave(&ticket).await
}

async fn issues(backend: &Backend) -> Result<()> {
    let name = "web".parse()?;
    let version = match backend.certs.get(&name).await? {
        Some(found) => Expect::At(found.version),
        None => Expect::Absent,
    };
    backend.certs.put(&name, b"sealed", version).await.map(drop)
}

#[tokio::test]
async fn each_role_does_what_it_is_for_and_nothing_else() {
    let Some(server) = CouchDb::start() else { return };
    if !server.is_real() {
        return skipped("it has no roles");
    }
    let (other, login) = people(&server).await;
    for (role, may_read, may_register, may_issue) in [
        ("servicekit-agent", true, true, false),
        ("servicekit-issuer", true, false, true),
        ("servicekit-reader", true, false, false),
        ("stranger", false, false, false),
    ] {
        let backend = login(role).await;
        for (what, done, may) in [
            ("reads", reads(&backend).await, may_read),
            ("registers", registers(&backend).await, may_register),
            ("takes a lease", takes_a_lease(&backend).await, may_register),
            ("issues", issues(&backend).await, may_issue),
        ] {
            match done {
                Ok(()) => assert!(may, "{role} {what}"),
                Err(error) => {
                    assert!(!may, "{role} {what}: {error:?}");
                    assert_eq!(error.kind(), Kind::Denied, "{role} {what}: {error:?}");
                }
            }
        }
        let findings = backend.doctor.examine().await;
        let worked = of(&findings, "operations").severity == Severity::Fine;
        assert_eq!(worked, may_register || may_issue, "{role}: {findings:#?}");
        if may_read {
            assert!(of(&findings, "user").detail.contains(role), "{findings:#?}");
        }
        let refused = backend.doctor.set_up().await;
        assert!(refused.iter().all(|finding| finding.severity == Severity::Fine) == (may_read));
    }
    forget(&other).await;
}

#[tokio::test]
async fn what_is_malformed_is_refused_and_other_documents_are_left_alone() {
    let Some(server) = CouchDb::start_validating() else { return };
    let rest = server.database_at(&server.endpoint());
    let other = Other::at(&rest);
    backend(&rest).doctor.set_up().await;
    let put = async |id: &str, document: Value| {
        other.send(Method::PUT, &format!("{}/{id}", other.database), Some(document)).await
    };
    for malformed in [
        json!({}),
        json!({ "servicekit": 2, "value": "{}", "write": "w" }),
        json!({ "servicekit": 1, "write": "w" }),
        json!({ "servicekit": 1, "value": "{}", "value64": "e30=", "write": "w" }),
        json!({ "servicekit": 1, "value": {}, "write": "w" }),
        json!({ "servicekit": 1, "value64": "?", "write": "w" }),
        json!({ "servicekit": 1, "value": "{}", "write": "" }),
        json!({ "servicekit": 1, "value": "{}", "write": "w", "ttl_ms": 5 }),
        json!({ "servicekit": 1, "value": "{}", "write": "w", "ttl_ms": -5, "ends_ms": 1 }),
        json!({ "servicekit": 1, "value": "{}", "write": "w", "ttl_ms": 5, "ends_ms": 1.5 }),
    ] {
        let (status, answer) = put("default:instances:web:web-1", malformed.clone()).await;
        assert_eq!(status, 403, "{malformed}");
        assert!(answer["reason"].as_str().unwrap().contains("not a document of servicekit"));
        assert_eq!(put("theirs:of:another:kind", malformed).await.0, 201);
        let rev = other.read("theirs:of:another:kind").await["_rev"].clone();
        let path =
            format!("{}/theirs:of:another:kind?rev={}", other.database, rev.as_str().unwrap());
        assert_eq!(other.send(Method::DELETE, &path, None).await.0, 200);
    }
    let good = json!({ "servicekit": 1, "value": "", "write": "w", "ttl_ms": 5, "ends_ms": 1 });
    assert_eq!(put("default:instances:web:web-1", good.clone()).await.0, 201);

    // As replication brings them.
    for (id, taken) in [("default:lease:web:head", false), ("default:instances:web:web-2", true)] {
        let mut document = good.clone();
        document["_id"] = id.into();
        document["_rev"] = format!("1-{}", "f".repeat(32)).into();
        let body = json!({ "new_edits": false, "docs": [document] });
        let path = format!("{}/_bulk_docs", other.database);
        let (_, answer) = other.send(Method::POST, &path, Some(body)).await;
        assert_eq!(answer.as_array().unwrap().is_empty(), taken, "{id}: {answer}");
        assert_eq!(other.read(id).await["_rev"].is_string(), taken);
    }
}
