//! What tests of budgets share: a fleet, a crowd at a lease and a long list, of which to count at the wire what operations send.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, join_all},
    stream::BoxStream,
};
use servicekit_core::{
    Env, Instance, Label, LeaseProvider, Name, Registry, Result, State,
    lease::{Granted, Request, Standing, Term, Ticket},
    registry::{Claim, Session},
    store::{Expect, Group, Keep, Put, Store, WriteId},
};
use tokio::task::JoinHandle;

/// The nodes of [`fill`].
pub const NODES: usize = 100;
/// The instances of each.
pub const EACH: usize = 10;

/// A node and its instances, each with the claim that it was put under.
pub type Node = (Session, Vec<(Claim, Instance)>);

/// A request for one slot, for who would wait ten minutes.
///
/// # Panics
///
/// When the holder is no service id.
#[must_use]
pub fn request(holder: &str) -> Request {
    Request {
        holder: holder.parse().expect("a service id"),
        term: Term::Attended { ttl: Duration::from_secs(30) },
        slots: 1,
        wait: Some(Duration::from_secs(600)),
        note: String::new(),
    }
}

/// A label.
///
/// # Panics
///
/// When it is none.
#[must_use]
pub fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

/// Lets so much real time pass: what is counted is what is sent in it.
pub async fn pass(time: Duration) {
    Env::system().clock.sleep(time).await;
}

/// A lease that is held, by `one`, and so many who wait for it, in the order of their coming.
///
/// # Panics
///
/// When the store fails, or grants to more than one.
pub async fn crowd(
    leases: &Arc<dyn LeaseProvider>,
    lease: &Label,
    waiters: usize,
) -> (Ticket, Vec<JoinHandle<(Ticket, Granted)>>) {
    let (held, _) = leases.join(lease, &request("one")).await.expect("the join of the first");
    let mut waiting = Vec::new();
    for i in 0..waiters {
        let joined = leases.join(lease, &request(&format!("w{i}"))).await;
        let (ticket, standing) = joined.expect("the join of a waiter");
        assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
        let granted = granted(leases.wait(&ticket));
        waiting.push(tokio::spawn(async move { (ticket, granted.await) }));
        if i % 10 == 0 {
            leases.renew(&held).await.expect("a renewal");
        }
    }
    (held, waiting)
}

/// Hands the lease on to the first who waits, until what `count` makes of that is `enough`, five times at most: where a server
/// takes a quarter of a second for a step, the next in line steps in.
///
/// # Panics
///
/// When the store fails, or grants to more than one.
pub async fn hand_over<C>(
    leases: &Arc<dyn LeaseProvider>,
    mut held: Ticket,
    waiting: &mut Vec<JoinHandle<(Ticket, Granted)>>,
    count: impl AsyncFn(BoxFuture<'_, Ticket>) -> (Ticket, C),
    enough: impl Fn(&C) -> bool,
) -> C {
    let mut handed_over = 0;
    loop {
        let next = waiting.remove(0);
        let handing_over = async {
            leases.leave(&held).await.expect("the holder leaves");
            next.await.expect("the next one is granted").0
        };
        let (next, counted) = count(Box::pin(handing_over)).await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()), "one slot, one grant");
        handed_over += 1;
        if handed_over == 5 || enough(&counted) {
            return counted;
        }
        held = next;
    }
}

async fn granted(mut standings: BoxStream<'static, Result<Standing>>) -> Granted {
    loop {
        if let Some(Ok(Standing::Granted(granted))) = standings.next().await {
            return granted;
        }
    }
}

/// Registers [`NODES`] with [`EACH`] instances of `label` that are up, which nobody has to beat for ten minutes.
///
/// # Panics
///
/// When the store fails.
pub async fn fill(registry: &Arc<dyn Registry>, label: &Label) -> Vec<Node> {
    const TTL: Duration = Duration::from_secs(600);

    let now = Env::system().clock.wall();
    let mut nodes = Vec::new();
    for node in 0..NODES {
        let session = registry.open(&format!("n{node}"), TTL).await.expect("a session");
        let instances = (0..EACH).map(async |i| {
            let id = format!("{label}-{node}-{i}").parse().expect("a service id");
            let mut instance = Instance::starting(label.clone(), id, "10.0.0.1", now);
            instance.change(State::Up, "rise 1", "200 OK", now);
            let claim = Claim::new();
            registry.put(&session, &claim, &instance).await.expect("an instance");
            (claim, instance)
        });
        let instances = join_all(instances).await;
        nodes.push((session, instances));
    }
    nodes
}

/// Puts so many records of 500 bytes into a group; returns their names in order.
///
/// # Panics
///
/// When the store fails.
pub async fn put_many(store: &impl Store, group: &Group, records: usize) -> Vec<String> {
    let names: Vec<_> = (0..records).map(|number| format!("r-{number:05}")).collect();
    for names in names.chunks(50) {
        let puts = names.iter().map(async |name| {
            let put = Put {
                key: group.key(name.parse::<Name>().expect("a name")),
                value: vec![b'x'; 500].into(),
                expect: Expect::Absent,
                keep: Keep::Durable,
                write: WriteId::new(format!("w-{name}")),
            };
            store.put(&put).await.expect("a put")
        });
        join_all(puts).await;
    }
    names
}
