//! Certificates on a store: the same as long as they serve, and every interference seen.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use servicekit_core::{Error, Kind, Result};
use servicekit_pki::{
    Certificate, Identity,
    issue::{CA_LIFETIME, LIFETIME, MOST_NAMES},
    seal,
};
use servicekit_testkit::{
    fault::{Counting, Counts},
    sim::{self, Sim},
};

use crate::support::{World, name, named, request};

const DAY: Duration = Duration::from_secs(86_400);
const LEAF: &str = "leaf:web:web-1";
const MARK: &str = "mark:leaf:web:web-1";

fn refused(result: Result<Certificate>, said: &str) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::Secret, "{error:?}");
    assert!(error.to_string().contains(said), "{said:?}: {error}");
    error
}

#[test]
fn asking_again_returns_the_same() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let first = world.certificate(&request("web", "web-1")).await.unwrap();
        let again = world.certificate(&request("web", "web-1")).await.unwrap();
        assert_eq!((&first.facts, &first.cert, &first.ca), (&again.facts, &again.cert, &again.ca));
        assert_eq!(first.key, again.key);
        assert_eq!(first.chain, first.cert);
        assert_eq!(first.facts.names[0].to_string(), "web-1");
        assert_eq!(first.facts.lifetime_seconds, LIFETIME.as_secs());
        // The same names in another order, notation and number are the same names.
        let names = named("web", "web-1", &["WEB-1", "web-1."]);
        assert_eq!(world.certificate(&names).await.unwrap().facts, first.facts);
    });
}

#[test]
fn one_ca_signs_for_all_labels_of_a_namespace_and_for_no_other() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let web = world.certificate(&request("web", "a")).await.unwrap();
        let db = world.certificate(&request("db", "a")).await.unwrap();
        assert_eq!(web.ca, db.ca);
        assert_ne!(web.key, db.key);
        let staging = world.authority_of("staging", world.identity.clone(), world.env.clone());
        let other = staging.certificate(&request("web", "a")).await.unwrap();
        assert_ne!(other.ca, web.ca);
    });
}

#[test]
fn other_names_or_another_lifetime_make_another_certificate() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let mut last = world.certificate(&request("web", "web-1")).await.unwrap();
        for (asked, names, lifetime) in [
            (named("web", "web-1", &["b.example", "a.example"]), 2, LIFETIME),
            (request("web", "web-1").with_lifetime(DAY), 2, DAY),
            (named("web", "web-1", &["10.0.0.1"]), 1, DAY),
        ] {
            let next = world.certificate(&asked).await.unwrap();
            assert_ne!(next.facts.serial, last.facts.serial);
            assert_ne!(next.key, last.key);
            assert_eq!(next.revision, last.revision + 1);
            assert_eq!(next.facts.names.len(), names);
            assert_eq!(next.facts.lifetime_seconds, lifetime.as_secs());
            // What was stored stays, for who asks for nothing particular.
            let plain = world.certificate(&request("web", "web-1")).await.unwrap();
            assert_eq!(plain.facts, next.facts);
            assert_eq!(world.certificate(&asked).await.unwrap().facts, next.facts);
            last = next;
        }
        let asked = request("web", "web-1").with_lifetime(Duration::from_millis(1500));
        assert_eq!(world.certificate(&asked).await.unwrap().facts.lifetime_seconds, 2);
    });
}

#[test]
fn it_is_renewed_after_two_thirds_of_its_lifetime() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env.clone());
        let asked = named("web", "web-1", &["web.example"]).with_lifetime(DAY * 3);
        let first = world.certificate(&asked).await.unwrap();
        env.clock.sleep(DAY * 2 - Duration::from_secs(2)).await;
        let plain = request("web", "web-1");
        assert_eq!(world.certificate(&plain).await.unwrap().facts, first.facts);
        env.clock.sleep(Duration::from_secs(2)).await;
        let next = world.certificate(&plain).await.unwrap();
        assert_ne!(next.facts.serial, first.facts.serial);
        assert_eq!(next.facts.names, first.facts.names);
        assert_eq!(next.facts.lifetime_seconds, first.facts.lifetime_seconds);
    });
}

#[test]
fn near_the_end_of_the_ca_one_gets_what_is_left_unless_more_was_asked_for() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env.clone());
        let first = world.certificate(&request("web", "web-1")).await.unwrap();
        env.clock.sleep(CA_LIFETIME - DAY * 10).await;
        let last = world.certificate(&request("web", "web-1")).await.unwrap();
        assert_eq!(last.ca, first.ca);
        assert!(last.facts.not_after.since(env.clock.wall()) <= DAY * 10);
        assert_eq!(last.facts.lifetime_seconds, LIFETIME.as_secs());
        let asked = request("web", "web-1").with_lifetime(DAY * 11);
        assert_eq!(world.certificate(&asked).await.unwrap_err().kind(), Kind::Invalid);
        env.clock.sleep(DAY * 10).await;
        let error = world.certificate(&request("web", "web-1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("the CA ended at"), "{error}");
    });
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_made() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let many: Vec<_> = (0..=MOST_NAMES).map(|i| format!("n{i}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        for asked in [
            request("web", "web_1"),
            request("web", "user@host"),
            request("web", "web-1").with_lifetime(CA_LIFETIME + Duration::from_secs(1)),
            request("web", "web-1").with_lifetime(Duration::ZERO),
            request("web", "web-1").with_lifetime(Duration::MAX),
            named("web", "web-1", &many),
        ] {
            let error = world.certificate(&asked).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
        }
        assert_eq!(world.certs("default").list("").await.unwrap(), []);
        // With names, any id will do; and it may be an address itself.
        world.certificate(&named("web", "web_1", &["a"])).await.unwrap();
        world.certificate(&request("web", "::1")).await.unwrap();
        world.certificate(&named("web", "web-1", &many[1..])).await.unwrap();
    });
}

#[test]
fn many_who_ask_at_once_get_one_ca_and_one_certificate_for_each_id() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let ask = async |i: usize| {
            let id = format!("web-{}", i % 5);
            world.certificate(&request("web", &id)).await.unwrap()
        };
        let all = join_all((0..20).map(ask)).await;
        let cas: BTreeSet<_> = all.iter().map(|one| &one.ca).collect();
        let certs: BTreeSet<_> = all.iter().map(|one| &one.cert).collect();
        assert_eq!((cas.len(), certs.len()), (1, 5));
        for one in &all {
            let id = one.facts.service_id.as_str();
            assert_eq!(world.certificate(&request("web", id)).await.unwrap().facts, one.facts);
        }
    });
}

#[test]
fn another_identity_opens_nothing_and_changes_nothing() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let before = world.stored("ca").await;
        let other = Identity::generate().unwrap();
        let recipient = other.recipient();
        let stranger = world.authority_of("default", other, world.env.clone());
        refused(stranger.certificate(&request("web", "web-1")).await, "another identity");
        refused(stranger.certificate(&request("web", "web-1")).await, &recipient);
        refused(stranger.certificate(&request("db", "db-1")).await, "another identity");
        assert_eq!(world.stored("ca").await, before);
        assert_eq!(world.certs("default").list("").await.unwrap().len(), 4);
    });
}

#[test]
fn a_record_that_was_put_back_is_named() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let old = world.stored(LEAF).await;
        let next = world.certificate(&named("web", "web-1", &["b"])).await.unwrap();
        let new = world.stored(LEAF).await;
        world.overwrite(LEAF, &old).await;
        for asked in [request("web", "web-1"), named("web", "web-1", &["c"])] {
            let error = refused(world.certificate(&asked).await, "was rolled back");
            assert!(error.to_string().starts_with(LEAF), "{error}");
        }
        assert_eq!(world.stored(LEAF).await, old, "nothing is written over it");
        // Whoever puts it right is served again.
        world.overwrite(LEAF, &new).await;
        let again = world.certificate(&request("web", "web-1")).await.unwrap();
        assert_eq!(again.facts, next.facts);
    });
}

#[test]
fn a_record_that_was_removed_is_named() {
    sim::run(1, async |Sim { env, .. }| {
        for record in ["ca", LEAF] {
            let world = World::new(env.clone());
            world.certificate(&request("web", "web-1")).await.unwrap();
            world.remove(record).await;
            let error = refused(world.certificate(&request("web", "web-1")).await, "is missing");
            assert!(error.to_string().starts_with(record), "{error}");
        }
    });
}

#[test]
fn who_removes_the_ca_and_its_mark_begins_anew() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        let first = world.certificate(&named("web", "web-1", &["b"])).await.unwrap();
        world.remove("ca").await;
        world.remove("mark:ca").await;
        let next = world.certificate(&request("web", "web-1")).await.unwrap();
        assert_ne!(next.ca, first.ca);
        assert_eq!((next.revision, next.facts.names), (2, first.facts.names));
    });
}

#[test]
fn a_mark_that_was_put_back_or_removed_is_named() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let first = world.stored(MARK).await;
        for names in [["b"], ["c"]] {
            world.certificate(&named("web", "web-1", &names)).await.unwrap();
        }
        world.overwrite(MARK, &first).await;
        refused(world.certificate(&request("web", "web-1")).await, "ahead of its mark");
        world.remove(MARK).await;
        refused(world.certificate(&request("web", "web-1")).await, "ahead of its mark");
    });
}

#[test]
fn a_mark_that_a_killed_writer_left_behind_is_raised() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let (old, first) = (world.stored(LEAF).await, world.stored(MARK).await);
        world.certificate(&named("web", "web-1", &["b"])).await.unwrap();
        world.overwrite(MARK, &first).await;
        world.certificate(&request("web", "web-1")).await.unwrap();
        world.overwrite(LEAF, &old).await;
        refused(world.certificate(&request("web", "web-1")).await, "was rolled back");
        // And so is the very first.
        let world = World::new(world.env.clone());
        world.certificate(&request("web", "web-1")).await.unwrap();
        world.remove("mark:ca").await;
        world.remove(MARK).await;
        world.certificate(&request("web", "web-1")).await.unwrap();
        assert_eq!(world.certs("default").list("mark:").await.unwrap().len(), 2);
    });
}

#[test]
fn a_record_that_was_swapped_is_named() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        for (label, id) in [("web", "web-1"), ("web", "web-2"), ("db", "web-1")] {
            world.certificate(&request(label, id)).await.unwrap();
        }
        let genuine = world.stored(LEAF).await;
        for other in ["leaf:web:web-2", "leaf:db:web-1", "ca", MARK] {
            world.overwrite(LEAF, &world.stored(other).await).await;
            let error = refused(world.certificate(&request("web", "web-1")).await, "was swapped");
            assert!(error.to_string().contains(&format!("it holds {other}")), "{error}");
        }
        world.overwrite(LEAF, &genuine).await;
        world.overwrite(MARK, &world.stored("mark:ca").await).await;
        refused(world.certificate(&request("web", "web-1")).await, "was swapped");
        // Nor does the CA of one namespace serve another.
        let staging = world.authority_of("staging", world.identity.clone(), world.env.clone());
        staging.certificate(&request("web", "web-1")).await.unwrap();
        let foreign = world.certs("staging").get(&name("ca")).await.unwrap().unwrap();
        world.overwrite("ca", &foreign.bytes).await;
        refused(world.certificate(&request("db", "web-1")).await, "of namespace staging");
    });
}

#[test]
fn a_record_that_was_damaged_is_named() {
    sim::run(1, async |Sim { env, .. }| {
        for record in ["ca", LEAF, "mark:ca", MARK] {
            let world = World::new(env.clone());
            world.certificate(&request("web", "web-1")).await.unwrap();
            let genuine = world.stored(record).await;
            let (mut flipped, half) = (genuine.clone(), &genuine[..genuine.len() / 2]);
            flipped[genuine.len() - 60] ^= 1;
            for damaged in [&flipped[..], half, b"", b"{}", &[0xff; 300], &vec![b'x'; 280 * 1024]] {
                world.overwrite(record, damaged).await;
                let result = world.certificate(&named("web", "web-1", &["b"])).await;
                let error = refused(result, "the sealed record");
                assert!(error.to_string().starts_with(&format!("{record}: ")), "{error}");
                assert_eq!(world.stored(record).await, damaged, "nothing is written over it");
            }
        }
    });
}

#[test]
fn a_record_of_a_later_version_is_refused_and_kept() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let (document, _) = documents(&world).await;
        world.overwrite(LEAF, &sealed(&world, &document.replacen("{\"v\":1", "{\"v\":2", 1))).await;
        let error = world.certificate(&request("web", "web-1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("format 2"), "{error}");
        world.overwrite(LEAF, &sealed(&world, "{\"v\":1}")).await;
        let error = world.certificate(&request("web", "web-1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unexpected);
    });
}

#[test]
fn what_a_later_version_stored_besides_survives_a_renewal() {
    sim::run(1, async |Sim { env, .. }| {
        let world = World::new(env);
        world.certificate(&request("web", "web-1")).await.unwrap();
        let (document, key) = documents(&world).await;
        let more =
            document.replacen("\"content\":{", "\"content\":{\"later\":[1,{\"x\":null}],", 1);
        world.overwrite(LEAF, &sealed(&world, &more)).await;
        world.certificate(&named("web", "web-1", &["b"])).await.unwrap();
        let (after, next) = documents(&world).await;
        assert!(after.contains("\"later\":[1,{\"x\":null}]"), "{after}");
        assert_ne!(key, next);
    });
}

/// What is sealed under [`LEAF`], and the key in it.
async fn documents(world: &World) -> (String, String) {
    let sealed = world.stored(LEAF).await;
    let document = seal::open(&world.identity, &sealed).unwrap().to_vec();
    let document = String::from_utf8(document).unwrap();
    let json: serde_json::Value = serde_json::from_str(&document).unwrap();
    let key = json["content"]["key"].as_str().unwrap().to_owned();
    (document, key)
}

fn sealed(world: &World, document: &str) -> Vec<u8> {
    seal::seal(&world.identity, document.as_bytes()).unwrap().into_bytes()
}

/// The budget in `docs/certificates.md`.
#[test]
fn asking_costs_what_the_docs_say() {
    sim::run(1, async |Sim { env, .. }| {
        let mut world = World::new(env);
        let counting = Counting::new(world.store.clone());
        world.store = std::sync::Arc::new(counting.clone());
        for (asked, get, put) in [
            (request("web", "web-1"), 4, 4),
            (request("web", "web-1"), 4, 0),
            (request("web", "web-2"), 4, 2),
            (named("web", "web-1", &["b"]), 4, 2),
        ] {
            let before = counting.counts();
            world.certificate(&asked).await.unwrap();
            let expected = Counts { get, put, ..Counts::default() };
            assert_eq!(counting.counts() - before, expected, "{asked:?}");
        }
    });
}
