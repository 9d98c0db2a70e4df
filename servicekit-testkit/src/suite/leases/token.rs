use std::time::Duration;

use servicekit_core::{
    lease::Term,
    store::{Expect, Keep},
};

use super::contender::contender;
use crate::suite::{case::cases, world::World};

cases! { "leases";
    tokens_rise_whatever_ends_a_grant [Linearizable],
    tokens_rise_when_the_wall_clock_is_set_back [Linearizable, SimulatedTime],
    tokens_rise_when_another_host_is_behind [Linearizable, SimulatedTime, MultiHost],
    tokens_rise_when_a_backup_was_restored [NoFaults, Linearizable],
}

async fn tokens_rise_whatever_ends_a_grant(world: World) {
    let one = contender(&world, "one");
    let mut last = 0;
    let mut rises = |token: u64| {
        assert!(token > last, "{token} after {last}");
        last = token;
    };
    for _ in 0..2 {
        let left = one.obtain(world.ttl()).await;
        rises(left.token());
        one.leave(&left.ticket).await;
        // This one is never left: it expires.
        rises(one.obtain(world.ttl()).await.token());
        let evicted = one.obtain(world.ttl()).await;
        rises(evicted.token());
        world
            .ok("evict", || async {
                let answer = one.leases.evict(&one.lease, evicted.granted.token, true).await;
                match answer {
                    // An eviction whose answer was lost has been done.
                    Err(error) if error.kind() == servicekit_core::Kind::NotFound => Ok(()),
                    answer => answer,
                }
            })
            .await;
        let term = Term::Unattended { time: world.ttl(), reuse: false };
        let unattended = contender(&world, "one").term(term);
        rises(unattended.obtain(world.ttl()).await.token());
        rises(one.obtain(world.ttl()).await.token());
    }
}

async fn tokens_rise_when_the_wall_clock_is_set_back(world: World) {
    let one = contender(&world, "one");
    let hour = Duration::from_secs(3600);
    let mut last = 0;
    for step in 0..12 {
        match step % 4 {
            0 => world.clock().set_back(hour),
            1 => world.clock().set_back(hour * 24),
            2 => world.clock().set_forward(hour),
            _ => {}
        }
        let held = one.obtain(world.ttl()).await;
        assert!(held.token() > last, "{} after {last}", held.token());
        last = held.token();
        one.leave(&held.ticket).await;
    }
}

async fn tokens_rise_when_another_host_is_behind(world: World) {
    let (behind, clock) = world.another_host();
    clock.set_back(Duration::from_secs(3600));
    let (here, mut there) = (contender(&world, "here"), contender(&world, "there"));
    there.leases = world.process_on(&behind).leases;
    let mut last = 0;
    for _ in 0..3 {
        for contender in [&here, &there] {
            let held = contender.obtain(world.ttl()).await;
            assert!(held.token() > last, "{} after {last}", held.token());
            last = held.token();
            contender.leave(&held.ticket).await;
        }
    }
}

/// All records of the lease are as they were a while ago.
async fn tokens_rise_when_a_backup_was_restored(world: World) {
    let one = contender(&world, "one");
    let held = one.granted().await;
    one.leave(&held.ticket).await;
    let backup = one.records().await;
    assert!(!backup.is_empty(), "the case looks at the wrong records");
    let mut last = 0;
    for _ in 0..5 {
        let held = one.granted().await;
        last = held.token();
        one.leave(&held.ticket).await;
    }
    world.pass(Duration::from_millis(50)).await;
    let store = world.store();
    for record in one.records().await {
        store.delete(&record.key, &record.version).await.expect("delete");
    }
    for record in backup {
        let put = world.put(&record.key, &record.value, Expect::Absent, Keep::Durable);
        store.put(&put).await.expect("put");
    }
    let held = one.granted().await;
    assert!(held.token() > last, "{} after {last}", held.token());
}
