use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, join, join_all, select},
};
use servicekit_core::{
    Instant, Label, LeaseProvider,
    clock::timeout,
    lease::{Granted, Guard, Request, Standing, Term, Ticket, margin},
};

use super::contender::contender;
use crate::{
    history::{Attempt, End, History},
    suite::{
        case::cases,
        world::{World, id, is_fault, label},
    },
};

cases! { "leases";
    whatever_contenders_do_grants_do_not_overlap_and_come_in_order [Linearizable],
}

/// Contenders come, wait, give up, work, crash, and evict each other, while the store comes and goes.
async fn whatever_contenders_do_grants_do_not_overlap_and_come_in_order(world: World) {
    let slots = 1 + u32::try_from(world.env.random.below(3)).unwrap_or(0);
    let history = History::default();
    let until = world.now() + world.ttl() * world.many(15, 8);
    let (world, history) = (&world, &history);
    let contenders = (0..world.many(6, 4)).map(|i| {
        let worker = Worker {
            world,
            leases: world.process().leases,
            lease: label("lease"),
            request: Request {
                holder: id(&format!("w{i}")),
                term: Term::Attended { ttl: world.ttl() },
                slots,
                wait: Some(Duration::from_secs(3600)),
                note: String::new(),
            },
            history,
        };
        async move {
            while world.now() < until {
                worker.attempt().await;
                world.pass(some(world, world.ttl() / 2)).await;
            }
        }
        .boxed()
    });
    join(join_all(contenders), outages(world, until)).await;
    let violations = history.violations(slots);
    assert!(violations.is_empty(), "{violations:#?} with {slots} slots\n{history}");
    // In real time the turns of those who died may take all of it.
    let least = match (&world.clock, world.setting.has_faults) {
        (None, _) => 1,
        (Some(_), true) => 2,
        (Some(_), false) => 6,
    };
    assert!(
        history.grants() >= least,
        "only {} grants in all that time\n{history}",
        history.grants()
    );
    // Each of those who died while they waited may keep a slot for its turn.
    let lease = world.process().leases.inspect(&label("lease")).await;
    let dead = lease.ok().flatten().map_or(MOST_DEAD, |lease| lease.waiting.len());
    let turns = world.turn() * 2 * u32::try_from(dead).unwrap_or(u32::MAX);
    contender(world, "last").slots(slots).obtain(world.ttl() * 4 + turns).await;
}

/// How many may have died, where the store does not say.
const MOST_DEAD: usize = 10;

/// Up to so long, at random.
fn some(world: &World, longest: Duration) -> Duration {
    Duration::from_millis(
        world.env.random.below(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX)),
    )
}

async fn outages(world: &World, until: Instant) {
    while world.now() < until {
        world.pass(some(world, world.ttl() * 8)).await;
        world.faulty.away();
        world.pass(some(world, world.ttl() * 2)).await;
        world.faulty.back();
    }
}

struct Worker<'a> {
    world: &'a World,
    leases: Arc<dyn LeaseProvider>,
    lease: Label,
    request: Request,
    history: &'a History,
}

impl Worker<'_> {
    async fn attempt(&self) {
        let (world, history) = (self.world, self.history);
        let attempt = history.joining(world.now());
        let (patience, ticket) = (some(world, world.ttl() * 6), OnceLock::new());
        match timeout(&*world.env.clock, patience, self.obtain(attempt, &ticket)).await {
            Ok(Some((ticket, granted))) => self.work(attempt, &ticket, granted).await,
            Ok(None) => history.ended(world.now(), attempt, End::Lost),
            Err(_) => {
                history.ended(world.now(), attempt, End::Left);
                // Or it died: then it will miss its turn.
                if let Some(ticket) = ticket.get().filter(|_| world.env.random.chance(0.5)) {
                    drop(self.leases.leave(ticket).await);
                }
            }
        }
    }

    async fn obtain(
        &self,
        attempt: Attempt,
        waiting: &OnceLock<Ticket>,
    ) -> Option<(Ticket, Granted)> {
        let joined = self.leases.join(&self.lease, &self.request).await;
        let (ticket, standing) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                assert!(is_fault(&error), "join: {error:?}");
                return None;
            }
        };
        match standing {
            Standing::Granted(granted) => return Some((ticket, granted)),
            Standing::Refused { .. } | Standing::Gone => return None,
            Standing::Waiting { .. } => {
                self.history.waiting(self.world.now(), attempt);
                waiting.get_or_init(|| ticket.clone());
            }
        }
        let mut standings = self.leases.wait(&ticket);
        loop {
            match standings.next().await.expect("it ends with a decision") {
                Ok(Standing::Granted(granted)) => return Some((ticket, granted)),
                Ok(Standing::Gone | Standing::Refused { .. }) => return None,
                Ok(Standing::Waiting { .. }) => {}
                Err(error) => assert!(is_fault(&error), "wait: {error:?}"),
            }
        }
    }

    async fn work(&self, attempt: Attempt, ticket: &Ticket, granted: Granted) {
        let (world, history, ttl) = (self.world, self.history, self.world.ttl());
        let deadline = granted.counted_from + ttl - margin(ttl);
        if world.now() >= deadline {
            // The answer came too late to count on it.
            return history.ended(world.now(), attempt, End::Lost);
        }
        history.granted(world.now(), attempt, &granted);
        if world.env.random.chance(0.2) {
            // It hangs, and stops working at its deadline, without another word.
            world.env.clock.sleep_until(deadline).await;
            return history.ended(deadline, attempt, End::Lost);
        }
        let guard =
            Guard::keep(self.leases.clone(), ticket.clone(), granted, ttl, world.env.clone());
        let work = world.pass(some(world, ttl * 2));
        match select(Box::pin(guard.lost()), Box::pin(work)).await {
            Either::Left(_) => history.ended(world.now(), attempt, End::Lost),
            Either::Right(_) => history.ended(world.now(), attempt, End::Left),
        }
        match world.env.random.below(4) {
            0 => drop(guard),
            1 => {
                drop(guard);
                self.evict_somebody().await;
            }
            _ => drop(guard.release().await),
        }
    }

    async fn evict_somebody(&self) {
        let (world, force) = (self.world, self.world.env.random.chance(0.5));
        let Ok(Some(lease)) = self.leases.inspect(&self.lease).await else { return };
        let Some(grant) = lease.grants.first() else { return };
        if force {
            self.history.forced(world.now(), grant.token);
        }
        drop(self.leases.evict(&self.lease, grant.token, force).await);
    }
}
