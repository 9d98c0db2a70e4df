//! The promises hold on a store that fails, loses answers and applies writes late.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use servicekit_core::Result;
use servicekit_pki::{Certificate, Request};
use servicekit_testkit::{
    fault::{Faulty, Plan},
    sim::{self, Sim},
};

use crate::support::{World, named, request};

const DAY: Duration = Duration::from_secs(86_400);

/// `SERVICEKIT_SEEDS` asks for more runs than the few that always run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("SERVICEKIT_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    0..asked.unwrap_or(few)
}

/// Asks until there is an answer; nothing but a fault may keep it from coming.
async fn persist(world: &World, asked: &Request) -> Certificate {
    for _ in 0..200 {
        match world.certificate(asked).await {
            Ok(certificate) => return certificate,
            Err(error) => {
                // Nobody touched the records, and who was faster is no error.
                assert!(error.is_transient(), "{error:?}");
                world.env.clock.sleep(Duration::from_millis(500)).await;
            }
        }
    }
    panic!("no answer for {asked:?}");
}

#[test]
fn on_a_bad_day_there_is_still_one_ca_and_no_record_is_suspected() {
    for seed in seeds(24) {
        sim::run(seed, async |Sim { env, clock, seed }| {
            let mut world = World::new(env);
            let faulty = Faulty::new(world.store.clone(), std::sync::Arc::new(clock), seed);
            faulty.follow(Plan::ROUGH);
            world.store = std::sync::Arc::new(faulty.clone());
            let world = &world;

            let ids = ["web-1", "web-1", "web-1", "web-2"];
            let all = join_all(ids.map(async |id| persist(world, &request("web", id)).await)).await;
            let cas: BTreeSet<_> = all.iter().map(|one| one.ca.clone()).collect();
            let certs: BTreeSet<_> = all.iter().map(|one| one.cert.clone()).collect();
            assert_eq!((cas.len(), certs.len()), (1, 2));

            // Two that want different names replace each other's, and both get an answer.
            let wanted = [["a"], ["b"]].map(|names| named("web", "web-1", &names));
            let both = join_all(wanted.iter().map(async |asked| persist(world, asked).await)).await;
            for (asked, got) in wanted.iter().zip(&both) {
                assert_eq!(got.facts.names, asked.names);
                assert!(cas.contains(&got.ca));
            }
            // Many who find that it is due for renewal renew it once.
            world.env.clock.sleep(DAY * 70).await;
            let due = request("web", "web-2");
            let renewed = join_all((0..3).map(async |_| persist(world, &due).await)).await;
            let certs: BTreeSet<_> = renewed.iter().map(|one| &one.cert).collect();
            assert_eq!((certs.len(), renewed[0].revision), (1, 2));
        });
    }
}

/// A process that ends at any point leaves nothing, or a whole certificate that all who come later get.
#[test]
fn who_is_dropped_at_any_point_leaves_nothing_or_all() {
    for seed in seeds(24) {
        sim::run(seed, async |Sim { env, clock, seed }| {
            let mut world = World::new(env);
            let faulty = Faulty::new(world.store.clone(), std::sync::Arc::new(clock), seed);
            let slow = Plan { delay: 1.0, slowest: Duration::from_secs(1), ..Plan::NONE };
            faulty.follow(slow);
            world.store = std::sync::Arc::new(faulty.clone());
            let world = &world;

            let mut last: Option<Certificate> = None;
            for round in 0..6 {
                let asked = named("web", "web-1", &[["a"], ["b"]][round % 2]);
                let limit = Duration::from_millis(world.env.random.below(8000));
                let dropped: Option<Result<Certificate>> =
                    tokio_timeout(world, limit, &asked).await;
                if let Some(result) = dropped {
                    last = Some(result.unwrap());
                }
                let now =
                    persist(world, &request("web", "web-1").with_names(asked.names.clone())).await;
                if let Some(last) = &last {
                    assert_eq!(now.ca, last.ca);
                    assert!(now.revision >= last.revision);
                }
                last = Some(now);
            }
        });
    }
}

async fn tokio_timeout(
    world: &World,
    limit: Duration,
    asked: &Request,
) -> Option<Result<Certificate>> {
    let clock = &*world.env.clock;
    servicekit_core::clock::timeout(clock, limit, world.certificate(asked)).await.ok()
}
