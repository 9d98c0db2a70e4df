//! What is refused, and what is said then.

use std::{fs, time::Duration};

use etcd_client::{Client, ConnectOptions};
use futures_util::StreamExt as _;
use servicekit_core::{
    Env, Error, Kind, Name, Namespace, Result, Retry,
    store::{Change, Expect, Group, Keep, Limits, Put, Store as _, WriteId},
};
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server,
};

use crate::common;

fn open(address: &str, encrypted: bool) -> Result<Etcd> {
    Etcd::new(Config::parse(address, encrypted)?, Env::system(), Limits::default())
}

fn group() -> Group {
    Group::of(&Namespace::default(), "tests")
}

fn put(name: &str, keep: Keep) -> Put {
    Put {
        key: group().key(name.parse::<Name>().unwrap()),
        value: (*b"{}").into(),
        expect: Expect::Absent,
        keep,
        write: WriteId::new(format!("write of {name}")),
    }
}

/// What a read and a write are told; both the same.
async fn refused(etcd: &Etcd) -> Error {
    let read = etcd.list(&[group()]).await.unwrap_err();
    let write = etcd.put(&put("a", Keep::Durable)).await.unwrap_err();
    assert_eq!(read.kind(), write.kind(), "{read:?} {write:?}");
    for error in [&read, &write] {
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
    write
}

#[tokio::test]
async fn who_is_not_let_in_is_told_why() {
    let (pki, strangers) = (common::Pki::new(), common::Pki::new());
    let Some(cluster) = server::Etcd::start_cluster(1, Some(&pki.server())) else { return };
    let place = cluster.endpoints();
    let admin = Client::connect([&*place], Some(pki.options())).await.unwrap();
    common::add_users(&admin).await;
    let good = pki.parameters();

    let etcd = open(&format!("//agent:hush@{place}?{good}"), true).unwrap();
    etcd.put(&put("a", Keep::Durable)).await.unwrap();

    let expired = pki.issue("expired", |params| {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let ca = |pki: &common::Pki| format!("ca={}", pki.ca().display());
    let with = |(cert, key): &(std::path::PathBuf, std::path::PathBuf)| {
        format!("&cert={}&key={}", cert.display(), key.display())
    };
    let foreign = strangers.issue("client", |_| {});
    for (what, user, parameters, said) in [
        ("a wrong password", "agent:hushh@", good.clone(), "wrong user or password"),
        ("a user that is not there", "nobody:hush@", good.clone(), "wrong user or password"),
        // Then it is the one that the client's certificate names.
        ("no user", "", good.clone(), "permission denied"),
        ("a CA that the server is not from", "agent:hush@", ca(&strangers), "trust"),
        ("no client certificate", "agent:hush@", ca(&pki), "trust"),
        ("an expired client certificate", "agent:hush@", ca(&pki) + &with(&expired), "trust"),
        ("a client certificate of another CA", "agent:hush@", ca(&pki) + &with(&foreign), "trust"),
    ] {
        let etcd = open(&format!("//{user}{place}?{parameters}"), true).unwrap();
        let error = etcd.list(&[group()]).await.unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        if what.contains("client") && error.kind() == Kind::Unavailable {
            // The alert comes when the request is on its way, and may be lost with the connection.
            assert!(error.to_string().contains("take the client certificate"), "{what}: {error:?}");
            continue;
        }
        assert_eq!(
            (error.kind(), error.retry()),
            (Kind::Denied, Retry::Never),
            "{what}: {error:?}"
        );
        assert!(error.to_string().contains(said), "{what}: {error:?}");
    }

    let elsewhere = open(&format!("//agent:hush@{place}/elsewhere?{good}"), true).unwrap();
    let error = refused(&elsewhere).await;
    assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
    assert!(error.to_string().contains("read and write below the prefix"), "{error:?}");

    let plain = refused(&open(&format!("//{place}"), false).unwrap()).await;
    assert_eq!(plain.kind(), Kind::Unavailable, "{plain:?}");
    assert!(plain.to_string().contains("etcds://"), "{plain:?}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    use std::os::unix::fs::PermissionsExt as _;

    let pki = common::Pki::new();
    let (cert, key) = pki.issue("client", |_| {});
    let address = format!("//db1?cert={}&key={}", cert.display(), key.display());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let error = open(&address, true).unwrap_err();
    assert_eq!(error.kind(), Kind::Secret);
    assert!(error.to_string().contains("client.key") && error.to_string().contains("chmod 600"));
    fs::remove_file(&key).unwrap();
    assert!(open(&address, true).unwrap_err().to_string().contains("client.key"));
    let error = open("//db1?ca=/nowhere/ca.pem", true).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error:?}");
    let empty = pki.ca().with_file_name("empty.pem");
    fs::write(&empty, "no PEM").unwrap();
    let error = open(&format!("//db1?ca={}", empty.display()), true).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    assert!(error.to_string().contains("empty.pem"), "{error:?}");
}

#[tokio::test]
async fn a_user_where_there_are_none_is_refused() {
    let Some(server) = server::Etcd::start() else { return };
    let error =
        refused(&open(&format!("//agent:hush@{}", server.endpoints()), false).unwrap()).await;
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    assert!(error.to_string().contains("leave the user out"), "{error:?}");
}

#[tokio::test]
async fn what_is_no_etcd_is_told_from_one() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let error = refused(&open(&format!("//{place}"), false).unwrap()).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("is that etcd"), "{error:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_timeout() {
    let Some(server) = server::Etcd::start() else { return };
    let proxy = Proxy::start(&server.endpoints()).await;
    let etcd = open(&format!("//{}", proxy.endpoint()), false).unwrap();
    etcd.list(&[group()]).await.unwrap();
    let mut changes = etcd.watch(&group());
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Snapshot(Vec::new()));
    proxy.set(Mode::Silence);
    let write = etcd.put(&put("a", Keep::Durable)).await.unwrap_err();
    assert_eq!((write.kind(), write.retry()), (Kind::Timeout, Retry::Unknown), "{write:?}");
    let read = etcd.list(&[group()]).await.unwrap_err();
    assert_eq!((read.kind(), read.retry()), (Kind::Timeout, Retry::Safe), "{read:?}");
    // Nothing is sent while nothing changes, and yet it is noticed that nothing would come.
    let error = changes.next().await.unwrap().unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    proxy.set(Mode::Pass);
    loop {
        if let Ok(Change::Snapshot(records)) = changes.next().await.unwrap() {
            // The write that was not answered came through in the end, or it never will.
            assert!(records.len() <= 1);
            break;
        }
    }
}

#[tokio::test]
async fn what_others_wrote_is_passed_over() {
    let Some(server) = server::Etcd::start() else { return };
    let place = server.endpoints();
    let etcd = open(&format!("//{place}"), false).unwrap();
    let other = Client::connect([&*place], None).await.unwrap();
    let mut changes = etcd.watch(&group());
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Snapshot(Vec::new()));
    let base = "/servicekit/default/tests";
    for key in ["", "2/a", "/a b", "/\u{fc}", "/a/b", "0"] {
        other.kv_client().put(format!("{base}{key}"), "theirs", None).await.unwrap();
    }
    other.kv_client().put(format!("{base}/mine"), "theirs", None).await.unwrap();
    let Change::Put(record) = changes.next().await.unwrap().unwrap() else { panic!("a put") };
    assert_eq!((record.key.name.as_str(), &*record.value), ("mine", &b"theirs"[..]));
    let listed = etcd.list(&[group()]).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&record));
    etcd.delete(&record.key, &record.version).await.unwrap();
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Removed(record.key.name));
}

#[tokio::test]
async fn a_lease_that_is_gone_is_noticed_and_its_record_too() {
    let Some(server) = server::Etcd::start() else { return };
    let place = server.endpoints();
    let etcd = open(&format!("//{place}"), false).unwrap();
    let other = Client::connect([&*place], None).await.unwrap();
    let put = put("a", Keep::Ephemeral(Duration::from_secs(600)));
    etcd.put(&put).await.unwrap();
    etcd.touch(&put.key, &put.write).await.unwrap();

    // The lease lives and the record does not: a keep-alive alone would not notice.
    let key = "/servicekit/default/tests/a";
    let found = other.kv_client().get(key, None).await.unwrap();
    let lease = found.kvs()[0].lease();
    other.kv_client().delete(key, None).await.unwrap();
    assert_eq!(etcd.touch(&put.key, &put.write).await.unwrap_err().kind(), Kind::Lost);

    // The record lives, on no lease: a read alone would not notice that it does not end.
    other.lease_client().revoke(lease).await.unwrap();
    etcd.put(&put).await.unwrap();
    let found = other.kv_client().get(key, None).await.unwrap();
    other.kv_client().put(key, found.kvs()[0].value(), None).await.unwrap();
    assert_eq!(etcd.touch(&put.key, &put.write).await.unwrap_err().kind(), Kind::Lost);
    let there = etcd.get(&put.key).await.unwrap().unwrap();
    etcd.delete(&there.key, &there.version).await.unwrap();

    // Both are gone.
    etcd.put(&put).await.unwrap();
    other.lease_client().revoke(lease).await.unwrap();
    assert_eq!(etcd.touch(&put.key, &put.write).await.unwrap_err().kind(), Kind::Lost);
    assert_eq!(etcd.get(&put.key).await.unwrap(), None);
}

/// It keeps a lease alive that the others let end.
#[tokio::test]
async fn a_renewal_that_a_replaced_leader_answers_does_not_count() {
    const TTL: Duration = Duration::from_secs(30);
    let Some(mut cluster) = server::Etcd::start_cluster(3, None) else { return };
    let clock = Env::system().clock;
    let endpoints = cluster.endpoints();
    let endpoints: Vec<_> = endpoints.split(',').collect();
    for round in 0..3 {
        let leader = leading(&endpoints).await;
        let mut others = endpoints.clone();
        others.remove(leader);
        let etcd = open(&format!("//{}", endpoints[leader]), false).unwrap();
        let put = put(&format!("r{round}"), Keep::Ephemeral(TTL));
        etcd.put(&put).await.unwrap();
        etcd.touch(&put.key, &put.write).await.unwrap();
        cluster.members()[leader].pause();
        leading(&others).await;
        // So much of what the new leader gave it is over.
        clock.sleep(Duration::from_secs(4)).await;
        let sent = clock.now();
        let waking = async {
            clock.sleep(Duration::from_millis(500)).await;
            cluster.members()[leader].resume();
        };
        let (touched, ()) = futures_util::join!(etcd.touch(&put.key, &put.write), waking);
        leading(&endpoints).await;
        let Ok(_) = touched else { continue };
        let other = Client::connect([others[0]], None).await.unwrap();
        let key = format!("/servicekit/{}", put.key);
        let found = other.kv_client().get(key, None).await.unwrap();
        let lease = found.kvs()[0].lease();
        let left = other.lease_client().time_to_live(lease, None).await.unwrap().ttl();
        let left = Duration::from_secs(left.try_into().unwrap_or(0));
        let since = clock.now().since(sent);
        println!("{left:?} left after {since:?}");
        assert!(left + since + Duration::from_millis(1500) > TTL, "{left:?} after {since:?}");
    }
}

#[tokio::test]
async fn a_gap_that_compaction_made_is_closed_by_a_snapshot() {
    let Some(server) = server::Etcd::start() else { return };
    let place = server.endpoints();
    let proxy = Proxy::start(&place).await;
    let etcd = open(&format!("//{}", proxy.endpoint()), false).unwrap();
    let direct = open(&format!("//{place}"), false).unwrap();
    let other = Client::connect([&*place], None).await.unwrap();
    let mut changes = etcd.watch(&group());
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Snapshot(Vec::new()));
    proxy.set(Mode::Cut);
    direct.put(&put("a", Keep::Durable)).await.unwrap();
    let version = direct.put(&put("b", Keep::Durable)).await.unwrap();
    let key = put("b", Keep::Durable).key;
    direct.delete(&key, &version).await.unwrap();
    let revision = other.kv_client().get("x", None).await.unwrap().header().unwrap().revision();
    other.kv_client().compact(revision, None).await.unwrap();
    assert!(changes.next().await.unwrap().is_err());
    proxy.set(Mode::Pass);
    loop {
        match changes.next().await.unwrap() {
            Ok(Change::Snapshot(records)) => {
                let names: Vec<_> = records.iter().map(|record| record.key.name.as_str()).collect();
                break assert_eq!(names, ["a"]);
            }
            Ok(change) => panic!("{change:?} before a snapshot"),
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_role_that_may_read_reads_and_follows_and_writes_nothing() {
    let pki = common::Pki::new();
    let Some(cluster) = server::Etcd::start_cluster(1, Some(&pki.server())) else { return };
    let place = cluster.endpoints();
    let admin = Client::connect([&*place], Some(pki.options())).await.unwrap();
    let mut auth = admin.auth_client();
    auth.user_add("reader", "hush", None).await.unwrap();
    auth.role_add("reader").await.unwrap();
    let read = etcd_client::Permission::read("/servicekit/").with_prefix();
    auth.role_grant_permission("reader", read).await.unwrap();
    auth.user_grant_role("reader", "reader").await.unwrap();
    common::add_users(&admin).await;
    let of = |user: &str| open(&format!("//{user}:hush@{place}?{}", pki.parameters()), true);
    let (agent, reader) = (of("agent").unwrap(), of("reader").unwrap());
    let mut changes = reader.watch(&group());
    assert_eq!(changes.next().await.unwrap().unwrap(), Change::Snapshot(Vec::new()));
    let version = agent.put(&put("a", Keep::Durable)).await.unwrap();
    assert!(matches!(changes.next().await.unwrap(), Ok(Change::Put(_))));
    let listed = reader.list(&[group()]).await.unwrap();
    assert_eq!(listed.len(), 1);
    for keep in [Keep::Durable, Keep::Ephemeral(Duration::from_secs(60))] {
        let error = reader.put(&put("b", keep)).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
    }
    let error = reader.delete(&listed[0].key, &version).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error:?}");
}

#[tokio::test]
async fn a_login_that_has_expired_is_renewed_without_a_word() {
    let pki = common::Pki::new();
    let Some(mut cluster) = server::Etcd::start_cluster(1, Some(&pki.server())) else { return };
    let place = cluster.endpoints();
    common::add_users(&Client::connect([&*place], Some(pki.options())).await.unwrap()).await;
    let etcd = open(&format!("//agent:hush@{place}?{}", pki.parameters()), true).unwrap();
    etcd.list(&[group()]).await.unwrap();
    // Tokens are in the memory of a server.
    cluster.members()[0].kill();
    cluster.members()[0].start();
    let env = Env::system();
    loop {
        match etcd.put(&put("a", Keep::Ephemeral(Duration::from_secs(60)))).await {
            Ok(_) => break,
            Err(error) => {
                assert!(error.is_transient() || error.kind() == Kind::Conflict, "{error:?}")
            }
        }
        env.clock.sleep(Duration::from_millis(100)).await;
    }
    let put = put("a", Keep::Durable);
    etcd.touch(&put.key, &put.write).await.unwrap();
}

/// A token of this kind holds the revision of all users and roles, and any change of them makes it old.
#[tokio::test]
async fn a_user_that_is_added_disturbs_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (key, public) = (folder.path().join("key"), folder.path().join("public"));
    let pair = rcgen::KeyPair::generate().unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    fs::write(&public, pair.public_key_pem()).unwrap();
    let kind =
        format!("jwt,pub-key={},priv-key={},sign-method=ES256", public.display(), key.display());
    let Some(server) = server::Etcd::start_with(&["--auth-token", &kind]) else { return };
    let place = server.endpoints();
    common::add_users(&Client::connect([&*place], None).await.unwrap()).await;
    let root = ConnectOptions::new().with_user("root", "hush");
    let etcd = open(&format!("//agent:hush@{place}"), false).unwrap();
    let backend =
        servicekit_etcd::backend(etcd, Namespace::default(), Env::system(), Limits::default());
    let web = "web".parse().unwrap();
    let session = backend.registry.open("node", Duration::from_secs(600)).await.unwrap();
    let mut changes = backend.registry.watch(&web);
    changes.next().await.unwrap().unwrap();
    for i in 0..3 {
        // Who adds one has an old token then, too.
        let admin = Client::connect([&*place], Some(root.clone())).await.unwrap();
        admin.auth_client().user_add(format!("u{i}"), "hush", None).await.unwrap();
        backend.registry.beat(&session).await.unwrap();
        backend.registry.labels().await.unwrap();
    }
}

#[tokio::test]
async fn space_that_is_used_up_is_said_and_nothing_is_tried_again() {
    let Some(server) = server::Etcd::start() else { return };
    let place = server.endpoints();
    let etcd = open(&format!("//{place}"), false).unwrap();
    let first = put("a", Keep::Ephemeral(Duration::from_secs(60)));
    etcd.put(&first).await.unwrap();
    let other = Client::connect([&*place], None).await.unwrap();
    let mut maintenance = other.maintenance_client();
    let (set, kind) = (etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace);
    maintenance.alarm(set, kind, None).await.unwrap();
    let error = etcd.put(&put("b", Keep::Durable)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Never), "{error:?}");
    assert!(error.to_string().contains("etcdctl alarm disarm"), "{error:?}");
    // What is there is still kept, read, and given back.
    etcd.touch(&first.key, &first.write).await.unwrap();
    let found = etcd.get(&first.key).await.unwrap().unwrap();
    etcd.delete(&found.key, &found.version).await.unwrap();
}

#[tokio::test]
async fn a_member_that_hangs_is_left_within_the_time_of_a_caller_who_has_little() {
    let Some(server) = server::Etcd::start() else { return };
    let hung = Proxy::start(&server.endpoints()).await;
    hung.set(Mode::Silence);
    let limits = Limits { attempt: Duration::from_secs(2), total: Duration::from_secs(5) };
    // Each begins with one of both, at random.
    for _ in 0..6 {
        let address = format!("//{},{}", hung.endpoint(), server.endpoints());
        let config = Config::parse(&address, false).unwrap();
        let etcd = Etcd::new(config, Env::system(), limits).unwrap();
        let backend = servicekit_etcd::backend(etcd, Namespace::default(), Env::system(), limits);
        backend.registry.labels().await.unwrap();
    }
}

/// Which of these members leads, as soon as one does and all answer.
async fn leading(endpoints: &[&str]) -> usize {
    let clock = Env::system().clock;
    loop {
        let asked = endpoints.iter().map(|endpoint| async move {
            let client = Client::connect([endpoint], None).await.ok()?;
            let status = client.maintenance_client().status().await.ok()?;
            Some(status.header()?.member_id() == status.leader())
        });
        let answers =
            futures_util::future::try_join_all(asked.map(|asked| async { asked.await.ok_or(()) }));
        let answers =
            servicekit_core::clock::timeout(&*clock, Duration::from_secs(3), answers).await;
        if let Ok(Ok(answers)) = answers
            && let Some(leader) = answers.iter().position(|leads| *leads)
        {
            return leader;
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
}
