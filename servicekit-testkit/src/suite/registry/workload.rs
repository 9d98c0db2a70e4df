use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{Either, join_all, select},
};
use servicekit_core::{Kind, Label, State, registry::Claim};

use super::{
    follow::Seen,
    node::{Node, list, states},
};
use crate::{
    fault::Plan,
    suite::{
        case::cases,
        world::{World, is_fault, label},
    },
};

cases! { "registry";
    whatever_happens_readers_see_what_is_there_in_the_end,
}

/// What the owners know: which of their instances are up, and which were removed.
#[derive(Default)]
struct Truth(Mutex<BTreeMap<String, bool>>);

/// Nodes put and remove, lose their sessions, and come back, while the store comes and goes.
async fn whatever_happens_readers_see_what_is_there_in_the_end(world: World) {
    let (world, web, truth) = (&world, &label("web"), &Truth::default());
    let mut owners: Vec<_> = Vec::new();
    for n in 0..world.many(4, 3) {
        let claims = (0..3).map(|i| (format!("n{n}-{i}"), Claim::new())).collect();
        owners.push(Owner { node: Node::open_long(world).await, web, truth, claims });
    }
    let (mut events, mut seen) = (world.process().registry.watch(web), Seen::default());
    let following = async {
        loop {
            match events.next().await.expect("it does not end") {
                Ok(event) => seen.take(event),
                Err(error) => assert!(is_fault(&error), "{error:?}"),
            }
        }
    };
    let working = async {
        let rounds = owners.iter_mut().map(|owner| owner.work(world.many(40, 10)).boxed());
        futures_util::join!(join_all(rounds), outages(world));
    };
    match select(working.boxed(), following.boxed()).await {
        Either::Left(((), _)) => {}
        Either::Right(((), _)) => unreachable!("it does not end"),
    }
    // From here on nothing fails, and whatever was late has come.
    world.faulty.follow(Plan::NONE);
    world.pass(world.ttl() / 2).await;
    for owner in &owners {
        owner.put_again().await;
    }
    let expected: BTreeMap<_, _> = truth
        .known()
        .iter()
        .filter(|(_, is_up)| **is_up)
        .map(|(id, _)| (id.clone(), State::Up))
        .collect();
    let registry = world.process().registry;
    let read = || async { states(&list(world, &registry, web).await) };
    world.reads("what is there in the end", expected.clone(), read).await;
    seen.until(world, &mut events, &expected).await;
}

async fn outages(world: &World) {
    for _ in 0..3 {
        world.pass(world.ttl() * 2).await;
        world.faulty.away();
        world.pass(world.ttl() / 2).await;
        world.faulty.back();
    }
}

/// A node with its instances: what an agent does.
struct Owner<'a> {
    node: Node<'a>,
    web: &'a Label,
    truth: &'a Truth,
    claims: Vec<(String, Claim)>,
}

impl Owner<'_> {
    async fn work(&mut self, rounds: u32) {
        let world = self.node.world;
        let longest = u64::try_from(world.ttl().as_millis() / 2).unwrap_or(1);
        for _ in 0..rounds {
            world.pass(Duration::from_millis(world.env.random.below(longest))).await;
            let (service_id, claim) = &self.claims[world.below(3)];
            match world.below(4) {
                0 => {
                    self.stubbornly(|| async {
                        let id = crate::suite::world::id(service_id);
                        self.node.registry.remove(claim, self.web, &id).await
                    })
                    .await;
                    self.truth.known().insert(service_id.clone(), false);
                }
                1 => {
                    // Whether it is closed or not: what an agent does when its session has ended.
                    drop(self.node.registry.close(&self.node.session).await);
                    self.reopen().await;
                    self.put_again().await;
                }
                2 => match self.node.registry.beat(&self.node.session).await {
                    Ok(taken) => assert_eq!(taken, [], "nobody takes anything over"),
                    Err(error) => {
                        assert!(is_fault(&error) || error.kind() == Kind::Lost, "{error:?}");
                    }
                },
                _ => {
                    self.put(service_id, claim).await;
                    self.truth.known().insert(service_id.clone(), true);
                }
            }
        }
    }

    async fn reopen(&mut self) {
        let (registry, ttl) = (&self.node.registry, self.node.session.ttl());
        let session = self.stubbornly(|| registry.open("node", ttl)).await;
        self.node.session = session;
    }

    /// Puts everything that is still wanted.
    async fn put_again(&self) {
        for (service_id, claim) in &self.claims {
            let is_up = self.truth.known().get(service_id).copied();
            if is_up == Some(true) {
                self.put(service_id, claim).await;
            }
        }
    }

    async fn put(&self, service_id: &str, claim: &Claim) {
        self.stubbornly(|| self.node.try_put(claim, self.web, service_id)).await;
    }

    /// Tries until it succeeds: the store comes and goes.
    async fn stubbornly<T: Send, F>(&self, mut ask: impl FnMut() -> F + Send) -> T
    where
        F: Future<Output = servicekit_core::Result<T>> + Send,
    {
        loop {
            match ask().await {
                Ok(value) => return value,
                Err(error) => assert!(is_fault(&error), "{error:?}"),
            }
            self.node.world.pass(Duration::from_millis(100)).await;
        }
    }
}

impl Truth {
    fn known(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
