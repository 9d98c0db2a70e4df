//! A thousand who wait for one lease, on a store that pushes nothing: each is granted in its turn, and the head stays small.

use std::{sync::Arc, time::Duration};

use servicekit_core::{
    Backend, Name, Namespace,
    store::{Group, Limits, Memory, Profile, Store as _},
};
use servicekit_testkit::{
    budget::{crowd, label},
    fault::Counting,
    sim::{self, Sim},
};

const WAITERS: usize = 1000;
const HAND_OVERS: usize = 10;

#[test]
fn a_thousand_wait_and_look_ever_more_rarely() {
    sim::run(1, |Sim { env, .. }| async move {
        let store = Counting::new(Arc::new(Memory::new(env.clone(), Profile::Table)));
        let (namespace, limits) = (Namespace::default(), Limits::default());
        let backend =
            Backend::over("crowd", Arc::new(store.clone()), namespace.clone(), env.clone(), limits);
        let (leases, lease) = (&backend.leases, label("x"));
        let (mut held, mut waiting) = crowd(leases, &lease, WAITERS).await;
        // Each reads the whole queue once.
        env.clock.sleep(Duration::from_secs(10)).await;
        leases.renew(&held).await.expect("a renewal");

        let before = store.counts();
        env.clock.sleep(Duration::from_secs(20)).await;
        let asked = (store.counts() - before).sum();
        println!("{WAITERS} who wait ask {} times a second", asked / 20);
        assert!(asked < 250 * 20, "{asked} requests in twenty seconds");

        leases.renew(&held).await.expect("a renewal");
        let mut last = 0;
        for _ in 0..HAND_OVERS {
            let begun = env.clock.now();
            leases.leave(&held).await.expect("it leaves");
            let (next, granted) = waiting.remove(0).await.expect("it is granted");
            let took = env.clock.now().since(begun);
            assert!(took < Duration::from_secs(2), "handed over after {took:?}");
            assert!(granted.token.0 > last, "tokens rise");
            assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "one slot, one grant");
            (held, last) = (next, granted.token.0);
        }
        let key = Group::scoped(&namespace, "lease", &(&lease).into())
            .key("head".parse::<Name>().expect("a name"));
        let head = store.get(&key).await.expect("get").expect("the head").value.len();
        println!("the head has {head} bytes");
        assert!(head < 1500, "the head has {head} bytes");
    });
}
