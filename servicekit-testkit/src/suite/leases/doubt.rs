use std::time::Duration;

use servicekit_core::{
    Kind, Label,
    clock::timeout,
    lease::Standing,
    store::{Expect, Group, Keep},
};

use super::contender::{Contender, Held, contender};
use crate::{
    fault::{Fault, Plan},
    suite::{
        case::cases,
        world::{World, is_fault, label, name},
    },
};

cases! { "leases";
    a_lost_answer_never_grants_twice [NoFaults, Linearizable],
    a_ticket_that_comes_late_renews_nothing [NoFaults, Linearizable],
    a_renewal_without_an_answer_proves_nothing [NoFaults, Linearizable],
    a_join_that_is_dropped_leaves_nothing_for_long [NoFaults, Linearizable],
    nothing_grows_with_the_number_of_grants [NoFaults, Linearizable],
    records_of_others_are_passed_over [NoFaults, Linearizable],
    a_head_that_cannot_be_read_grants_nothing [NoFaults, Linearizable],
}

fn one_of(label: Label, mut contender: Contender<'_>) -> Contender<'_> {
    contender.lease = label;
    contender
}

/// Whatever happens to whichever request of a join, of a leave, of the next join.
async fn a_lost_answer_never_grants_twice(world: World) {
    let ttl = world.ttl();
    let late = Fault::ApplyLate(ttl / 2);
    for (i, fault) in [Fault::FailBefore, Fault::LoseAnswer, late].into_iter().enumerate() {
        for request in 0..world.many(9, 5) {
            let lease = label(&format!("lease-{i}-{request}"));
            let one = one_of(lease.clone(), contender(&world, "one"));
            let two = one_of(lease.clone(), contender(&world, "two"));
            world.faulty.script(request as usize, fault);
            let first = settle(&one).await;
            let second = two.join().await;
            let second = match (&first, second) {
                (Some(first), (ticket, Standing::Waiting { holders, .. })) => {
                    // It may wait for what an earlier try of its own left.
                    assert!(holders.len() <= 1);
                    let leaving = one.leave(&first.ticket);
                    let ((), held) = futures_util::join!(leaving, two.wait_for(&ticket, ttl * 3));
                    held
                }
                (Some(_), (_, Standing::Granted(granted))) => {
                    panic!("request {request}, {fault:?}: two is {granted:?} while one holds it")
                }
                (None, (ticket, Standing::Granted(granted))) => {
                    Some(Held { ticket, granted, known: world.now() })
                }
                (None, (ticket, Standing::Waiting { .. })) => two.wait_for(&ticket, ttl * 3).await,
                (_, (_, other)) => panic!("request {request}, {fault:?}: two is {other:?}"),
            };
            let second = match second {
                Some(held) => held,
                None => two.obtain(ttl * 3).await,
            };
            if let Some(first) = &first {
                assert!(second.token() > first.token());
                one.expect_lost(&first.ticket).await;
            }
            // Whatever is still to be applied is applied by now.
            two.keep(&second.ticket, ttl).await;
            assert_eq!(two.inspect().await.grants.len(), 1, "request {request}, {fault:?}");
            two.leave(&second.ticket).await;
            world.faulty.unscript();
        }
    }
}

/// What a caller does when a join failed: it knows of no grant, and asks again.
async fn settle(one: &Contender<'_>) -> Option<Held> {
    match one.leases.join(&one.lease, &one.request).await {
        Ok((ticket, Standing::Granted(granted))) => {
            Some(Held { ticket, granted, known: one.world.now() })
        }
        Ok((_, other)) => panic!("nobody else is there, and it is {other:?}"),
        Err(error) => {
            assert!(is_fault(&error) || error.kind() == Kind::Conflict, "{error:?}");
            None
        }
    }
}

/// The first try of a join is applied when the grant of the second has ended, and its place is free again.
async fn a_ticket_that_comes_late_renews_nothing(world: World) {
    let late = world.ttl() / 4;
    for request in 0..2 {
        let one = one_of(label(&format!("lease-{request}")), contender(&world, "one"));
        world.faulty.script(request, Fault::ApplyLate(late));
        let held = one.granted().await;
        world.faulty.unscript();
        one.leave(&held.ticket).await;
        world.pass(late * 2).await;
        one.expect_lost(&held.ticket).await;
        // What is left of the first try keeps nobody out.
        let next = one.granted().await;
        assert!(next.token() > held.token());
        one.leave(&next.ticket).await;
    }
}

async fn a_renewal_without_an_answer_proves_nothing(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let ttl = world.ttl();
    let held = one.granted().await;
    let second = two.waiting().await;
    let renewing = async {
        world.pass(ttl / 3).await;
        let sent = one.renew(&held.ticket).await;
        world.faulty.away();
        let limit = ttl / 2;
        let renewal = timeout(&*world.env.clock, limit, one.leases.renew(&held.ticket)).await;
        assert!(!matches!(renewal, Ok(Ok(()))), "nobody answered");
        world.faulty.back();
        sent
    };
    let (sent, granted) = futures_util::join!(renewing, two.wait(&second, ttl * 4));
    assert!(granted.known.since(sent) >= ttl);
    one.expect_lost(&held.ticket).await;
}

async fn a_join_that_is_dropped_leaves_nothing_for_long(world: World) {
    let many = world.many(30, 6);
    let ttl = world.ttl();
    let holder = contender(&world, "holder");
    for is_held in [false, true] {
        let held = if is_held { Some(holder.obtain(ttl * 2).await) } else { None };
        world.faulty.follow(Plan { delay: 1.0, slowest: Duration::from_millis(12), ..Plan::NONE });
        for i in 0..many {
            let mut dropped = contender(&world, &format!("dropped-{i}"));
            dropped.request.wait = Some(world.ttl());
            let limit = Duration::from_millis(u64::from(i) * u64::from(60 / many));
            let joining = dropped.leases.join(&dropped.lease, &dropped.request);
            drop(timeout(&*world.env.clock, limit, joining).await);
        }
        world.faulty.follow(Plan::NONE);
        if let Some(held) = held {
            holder.leave(&held.ticket).await;
        }
        let next = holder.obtain(ttl * 2 + (world.turn() + Duration::from_secs(1)) * many).await;
        holder.leave(&next.ticket).await;
    }
    world
        .eventually("only the head is left", || async {
            world.pass(ttl).await;
            let held = holder.obtain(ttl).await;
            holder.leave(&held.ticket).await;
            (holder.records().await.len() == 1).then_some(())
        })
        .await;
}

async fn nothing_grows_with_the_number_of_grants(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let mut size = 0;
    for cycle in 1..=world.many(200, 40) {
        let held = one.granted().await;
        let second = two.waiting().await;
        let (held, ()) =
            futures_util::join!(two.wait(&second, Duration::ZERO), one.leave(&held.ticket));
        two.leave(&held.ticket).await;
        let records = one.records().await;
        assert_eq!(records.len(), 1, "after {cycle} cycles there is more than the head");
        if cycle == 20 {
            size = records[0].value.len();
        }
        if cycle > 20 {
            assert!(
                records[0].value.len() <= size + 40,
                "the head grew to {} bytes",
                records[0].value.len()
            );
        }
    }
    let names = one.leases.names().await.expect("names");
    assert_eq!(names.len(), 1);
}

/// Values that a program or a person could leave in the store.
fn junk() -> [Vec<u8>; 8] {
    [
        Vec::new(),
        b"not JSON".to_vec(),
        vec![0xff, 0xfe, 0x00],
        b"{}".to_vec(),
        b"null".to_vec(),
        br#"{"v":99,"nonce":"x","holder":"x"}"#.to_vec(),
        br#"{"v":1,"nonce":7,"slots":-1,"grants":{}}"#.to_vec(),
        [b"[".repeat(10_000), b"]".repeat(10_000)].concat(),
    ]
}

async fn records_of_others_are_passed_over(world: World) {
    let (one, two) = (contender(&world, "one"), contender(&world, "two"));
    let (store, group) =
        (world.store(), Group::scoped(&world.namespace, "lease", &(&one.lease).into()));
    let held = one.granted().await;
    assert!(one.records().await.iter().all(|record| record.key.group == group));
    for (i, value) in junk().iter().enumerate() {
        let key = group.key(name(&format!("t-junk{i}")));
        store.put(&world.put(&key, value, Expect::Absent, Keep::Durable)).await.expect("put");
        let key = world.group("leases").key(name(&format!("Not:a.label{i}")));
        store.put(&world.put(&key, value, Expect::Absent, Keep::Durable)).await.expect("put");
    }
    let second = two.waiting().await;
    assert_eq!(two.inspect().await.grants.len(), 1);
    let (granted, ()) =
        futures_util::join!(two.wait(&second, Duration::ZERO), one.leave(&held.ticket));
    two.renew(&granted.ticket).await;
    let seen = one.inspect().await;
    assert_eq!((seen.grants.len(), seen.waiting.len()), (1, 0));
    assert_eq!(one.leases.names().await.expect("names"), std::slice::from_ref(&one.lease));
}

async fn a_head_that_cannot_be_read_grants_nothing(world: World) {
    let one = contender(&world, "one").not_waiting();
    let store = world.store();
    let held = one.granted().await;
    one.leave(&held.ticket).await;
    let other = one_of(label("other"), contender(&world, "other"));
    for value in junk() {
        let records = one.records().await;
        let [head] = records.as_slice() else { panic!("only the head, not {records:?}") };
        let expect = Expect::At(head.version.clone());
        store.put(&world.put(&head.key, &value, expect, Keep::Durable)).await.expect("put");
        let error =
            one.leases.join(&one.lease, &one.request).await.expect_err("nobody knows who holds it");
        assert_eq!(error.kind(), Kind::Unexpected, "{error:?}");
        one.leases.inspect(&one.lease).await.expect_err("nobody knows who holds it");
        let held = other.granted().await;
        other.leave(&held.ticket).await;
    }
}
