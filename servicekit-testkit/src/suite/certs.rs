//! The promises of [`servicekit_core::CertStore`].

use std::sync::Arc;

use futures_util::future::join_all;
use servicekit_core::{
    CertStore, Kind, Result,
    cert::Sealed,
    store::{Expect, Version},
};

use super::{
    Case,
    case::cases,
    world::{World, is_fault, name},
};

cases! { "certs";
    what_was_put_is_got,
    of_many_who_find_nothing_one_writes [Linearizable],
    a_put_needs_the_version,
    delete_needs_the_version,
    a_list_shows_what_begins_with_a_prefix,
    a_watch_shows_each_change,
    its_capabilities_are_those_of_the_store [NoFaults],
}

pub(super) const TABLES: &[&[Case]] = &[CASES];

/// Puts until it is settled, as the trait says: after an unknown answer, read.
async fn put(
    world: &World,
    certs: &Arc<dyn CertStore>,
    at: &str,
    bytes: &[u8],
    expect: Expect,
) -> Version {
    let at = name(at);
    let (put, bytes) = (certs.put(&at, bytes, expect.clone()).await, bytes.to_vec());
    match put {
        Ok(version) => version,
        Err(error) if world.setting.has_faults && is_fault(&error) => {
            world
                .eventually("a settled put", || async {
                    let found = certs.get(&at).await.ok()?;
                    if let Some(found) = found.filter(|found| *found.bytes == *bytes) {
                        return Some(found.version);
                    }
                    certs.put(&at, &bytes, expect.clone()).await.ok()
                })
                .await
        }
        Err(error) => panic!("put: {error:?}"),
    }
}

async fn get(world: &World, certs: &Arc<dyn CertStore>, at: &str) -> Option<Sealed> {
    let at = name(at);
    world.ok("get", || certs.get(&at)).await
}

async fn what_was_put_is_got(world: World) {
    let (certs, other) = (world.process().certs, world.process().certs);
    assert_eq!(get(&world, &certs, "ca").await, None);
    let sealed: Vec<u8> = (0..=u8::MAX).collect();
    let version = put(&world, &certs, "ca", &sealed, Expect::Absent).await;
    let found = get(&world, &other, "ca").await.expect("what was put");
    assert_eq!((&*found.bytes, &found.version), (&*sealed, &version));
    let next = put(&world, &other, "ca", b"next", Expect::At(version.clone())).await;
    assert_ne!(next, version);
    assert_eq!(&*get(&world, &certs, "ca").await.expect("what was put").bytes, b"next");
}

/// Exactly one CA, however many ask at once.
async fn of_many_who_find_nothing_one_writes(world: World) {
    let processes: Vec<_> = (0..8).map(|_| world.process().certs).collect();
    let tries = processes.iter().enumerate().map(async |(i, certs)| {
        let result = certs.put(&name("ca"), format!("{i}").as_bytes(), Expect::Absent).await;
        (format!("{i}"), result)
    });
    let results: Vec<(String, Result<Version>)> = join_all(tries).await;
    let won: Vec<_> = results.iter().filter(|(_, result)| result.is_ok()).collect();
    assert!(won.len() <= 1, "two wrote: {won:?}");
    for (_, result) in &results {
        if let Err(error) = result {
            let may_fail = world.setting.has_faults && is_fault(error);
            assert!(error.kind() == Kind::Conflict || may_fail, "{error:?}");
        }
    }
    if let [(bytes, Ok(version))] = won.as_slice() {
        let found = get(&world, &processes[0], "ca").await.expect("what was put");
        assert_eq!((&*found.bytes, &found.version), (bytes.as_bytes(), version));
    } else {
        assert!(world.setting.has_faults, "nobody wrote");
    }
}

async fn a_put_needs_the_version(world: World) {
    let certs = world.process().certs;
    let one = put(&world, &certs, "ca", b"one", Expect::Absent).await;
    let two = put(&world, &certs, "ca", b"two", Expect::At(one.clone())).await;
    for expect in [Expect::Absent, Expect::At(one)] {
        let error = certs.put(&name("ca"), b"three", expect).await.expect_err("not as expected");
        assert!(error.kind() == Kind::Conflict || world.setting.has_faults && is_fault(&error));
    }
    let found = get(&world, &certs, "ca").await.expect("what was put");
    assert_eq!((&*found.bytes, found.version), (&b"two"[..], two));
}

async fn delete_needs_the_version(world: World) {
    let certs = world.process().certs;
    let allowed = |kind: Kind, error: servicekit_core::Error| {
        assert!(error.kind() == kind || world.setting.has_faults && is_fault(&error), "{error:?}");
    };
    let one = put(&world, &certs, "ca", b"one", Expect::Absent).await;
    let two = put(&world, &certs, "ca", b"two", Expect::At(one.clone())).await;
    allowed(Kind::Conflict, certs.delete(&name("ca"), &one).await.expect_err("an old version"));
    assert!(get(&world, &certs, "ca").await.is_some());
    world
        .eventually("delete", || async {
            match certs.delete(&name("ca"), &two).await {
                Ok(()) => Some(()),
                Err(error) => {
                    // After an unknown answer it may be gone already.
                    assert!(world.setting.has_faults, "{error:?}");
                    (error.kind() == Kind::NotFound).then_some(())
                }
            }
        })
        .await;
    if !world.setting.has_faults {
        assert_eq!(get(&world, &certs, "ca").await, None);
        let error = certs.delete(&name("ca"), &two).await.expect_err("there is none");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}

async fn a_list_shows_what_begins_with_a_prefix(world: World) {
    let certs = world.process().certs;
    for at in ["web:b", "web:a", "web2:a", "db"] {
        put(&world, &certs, at, b"x", Expect::Absent).await;
    }
    for (prefix, expected) in [
        ("web:", vec!["web:a", "web:b"]),
        ("web", vec!["web2:a", "web:a", "web:b"]),
        ("", vec!["db", "web2:a", "web:a", "web:b"]),
        ("x", vec![]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(name).collect();
        let list = || async { world.ok("list", || certs.list(prefix)).await };
        world.reads(prefix, expected, list).await;
    }
}

async fn a_watch_shows_each_change(world: World) {
    let certs = world.process().certs;
    let mut changes = world.process().certs.watch(&name("ca"));
    let until = async |changes: &mut _, what: &str, expected: Option<&[u8]>| {
        world
            .next(what, changes, |found: Option<Sealed>| {
                let bytes = found.as_ref().map(|sealed| &*sealed.bytes);
                (bytes == expected).then_some(())
            })
            .await;
    };
    until(&mut changes, "nothing", None).await;
    put(&world, &certs, "ca2", b"another", Expect::Absent).await;
    let one = put(&world, &certs, "ca", b"one", Expect::Absent).await;
    until(&mut changes, "the first put", Some(b"one")).await;
    world.faulty.away();
    world.pass(std::time::Duration::from_millis(200)).await;
    world.faulty.back();
    let two = put(&world, &certs, "ca", b"two", Expect::At(one)).await;
    until(&mut changes, "the second put, after an outage", Some(b"two")).await;
    if !world.setting.has_faults {
        certs.delete(&name("ca"), &two).await.expect("delete");
        until(&mut changes, "the delete", None).await;
    }
}

async fn its_capabilities_are_those_of_the_store(world: World) {
    let backend = world.process();
    assert_eq!(backend.certs.capabilities(), world.capabilities());
    assert_eq!(backend.registry.capabilities(), world.capabilities());
    assert_eq!(backend.leases.capabilities(), world.capabilities());
}
