//! The view, under simulated time and with the store away.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{sync::Arc, time::Duration};

use servicekit_core::{
    Backend, Env, Instance, Label, Namespace, State,
    discovery::{List, Options, View},
    registry::{Claim, Session},
    store::{Limits, Memory, Profile},
};
use servicekit_testkit::{
    fault::Faulty,
    sim::{self, Sim},
};

const TTL: Duration = Duration::from_secs(12);

/// A registry of one label with a node that registers instances in it.
struct World {
    env: Env,
    faulty: Faulty,
    backend: Backend,
    label: Label,
    session: Session,
    claims: Vec<Claim>,
}

impl World {
    async fn new(sim: &Sim, instances: usize) -> Self {
        let env = sim.env.clone();
        let memory = Arc::new(Memory::new(env.clone(), Profile::Server));
        let faulty = Faulty::new(memory, env.clock.clone(), sim.seed);
        let store = Arc::new(faulty.clone());
        let namespace = Namespace::default();
        let backend = Backend::over("memory", store, namespace, env.clone(), Limits::default());
        let session = backend.registry.open("node", TTL).await.unwrap();
        let label = "web".parse().unwrap();
        let claims = (0..instances).map(|_| Claim::new()).collect();
        let world = Self { env, faulty, backend, label, session, claims };
        for i in 0..instances {
            world.put(i, State::Up).await;
        }
        world
    }

    async fn put(&self, i: usize, state: State) {
        let now = self.env.clock.wall();
        let id = format!("web-{i}").parse().unwrap();
        let mut instance = Instance::starting(self.label.clone(), id, "10.0.0.1", now);
        instance.change(state, "rule", "output", now);
        self.backend.registry.put(&self.session, &self.claims[i], &instance).await.unwrap();
    }

    fn view(&self, options: Options) -> View {
        View::open(&self.backend.registry, options, self.env.clone())
    }

    fn options(&self) -> Options {
        Options::labels([self.label.clone()])
    }

    /// Waits until the view's list is as wanted.
    async fn until(&self, view: &View, wanted: impl Fn(&List) -> bool) -> Arc<List> {
        let deadline = self.env.clock.now() + Duration::from_secs(60);
        loop {
            match view.list(&self.label) {
                Some(list) if wanted(&list) => return list,
                list => assert!(self.env.clock.now() < deadline, "still {list:?}"),
            }
            self.env.clock.sleep(Duration::from_millis(10)).await;
        }
    }

    async fn beat_for(&self, duration: Duration) {
        let end = self.env.clock.now() + duration;
        while self.env.clock.now() < end {
            self.backend.registry.beat(&self.session).await.unwrap();
            self.env.clock.sleep(TTL / 3).await;
        }
    }
}

#[test]
fn a_view_follows_and_forgets_who_was_removed() {
    sim::run(1, |sim| async move {
        let world = World::new(&sim, 3).await;
        let view = world.view(world.options());
        view.ready().await;
        assert_eq!(view.list(&world.label).unwrap().up.len(), 3);
        assert!(view.list(&"other".parse().unwrap()).is_none());
        world.put(0, State::Down).await;
        world.until(&view, |list| list.up.len() == 2).await;
        let id = "web-1".parse().unwrap();
        world.backend.registry.remove(&world.claims[1], &world.label, &id).await.unwrap();
        let list = world.until(&view, |list| list.up.len() == 1).await;
        assert_eq!(list.up[0].service_id.as_str(), "web-2");
    });
}

#[test]
fn a_view_outlives_the_store_and_says_how_old_it_is() {
    sim::run(2, |sim| async move {
        let world = World::new(&sim, 2).await;
        let view = world.view(world.options());
        view.ready().await;
        assert_eq!(view.age(&world.label), Some(Duration::ZERO));
        world.faulty.away();
        world.until(&view, |list| list.stale_since.is_some()).await;
        world.env.clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(view.list(&world.label).unwrap().up.len(), 2);
        assert!(view.age(&world.label).unwrap() >= Duration::from_secs(3600));
        world.faulty.back();
        world.until(&view, |list| list.stale_since.is_none()).await;
        // Nobody could beat during the outage, so that nobody is lost before one ttl of grace is over.
        assert_eq!(view.list(&world.label).unwrap().up.len(), 2);
        world.until(&view, |list| list.up.is_empty()).await;
    });
}

#[test]
fn a_lost_node_leaves_the_list_after_its_ttl() {
    sim::run(3, |sim| async move {
        let world = World::new(&sim, 1).await;
        let view = world.view(world.options());
        view.ready().await;
        world.beat_for(TTL * 3).await;
        assert_eq!(view.list(&world.label).unwrap().up.len(), 1);
        let stopped = world.env.clock.now();
        world.until(&view, |list| list.up.is_empty()).await;
        assert!(world.env.clock.now().since(stopped) <= TTL + Duration::from_millis(100));
    });
}

#[test]
fn a_view_that_panics_keeps_the_list_but_not_who_was_removed() {
    sim::run(4, |sim| async move {
        let world = World::new(&sim, 4).await;
        let view = world.view(world.options().with_panic_threshold(0.5));
        view.ready().await;
        world.put(0, State::Down).await;
        assert_eq!(world.until(&view, |list| list.up.len() == 3).await.up.len(), 3);
        world.put(1, State::Down).await;
        world.until(&view, |list| list.up.len() == 2).await;
        world.put(2, State::Down).await;
        world.put(3, State::Down).await;
        let list = world.until(&view, |list| list.panicking).await;
        assert_eq!(list.up.len(), 2, "the list from before");
        let id = "web-3".parse().unwrap();
        world.backend.registry.remove(&world.claims[3], &world.label, &id).await.unwrap();
        world.until(&view, |list| list.up.len() == 1).await;
        world.put(0, State::Up).await;
        world.put(1, State::Up).await;
        world.until(&view, |list| !list.panicking && list.up.len() == 2).await;
    });
}
