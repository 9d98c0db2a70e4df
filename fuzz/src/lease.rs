use std::time::Duration;

use servicekit::{
    Label,
    lease::{Request, Standing, Term, Token},
    store::Group,
};

use crate::{World, lines, run};

/// A lease whose head (the first line) and tickets (the others) are anything: it is reported or refused, and whatever is
/// granted has a token above the last and a slot of its own.
pub fn lease(bytes: &[u8]) {
    let (profile, mut lines) = lines(bytes);
    let (world, label): (_, Label) = (World::new(profile), "web".parse().expect("a label"));
    let group = Group::scoped(&world.namespace, "lease", &(&label).into());
    run(async {
        world.write(&group, "head", lines.next().unwrap_or_default(), None).await;
        for (n, line) in lines.take(8).enumerate() {
            let ttl = Some(Duration::from_secs(60));
            world.write(&group, &format!("t-{n:03x}"), line, ttl).await;
        }
        let leases = world.backend().leases;
        let before = leases.inspect(&label).await.ok().flatten();
        let request = Request {
            holder: "fuzz".parse().expect("an id"),
            term: Term::Attended { ttl: Duration::from_secs(60) },
            slots: before.as_ref().map_or(1, |lease| lease.slots.clamp(1, 64)),
            wait: None,
            note: String::new(),
        };
        if let Ok((ticket, Standing::Granted(granted))) = leases.join(&label, &request).await {
            let after = leases.inspect(&label).await.expect("it was granted").expect("it is there");
            let own: Vec<_> = after.grants.iter().filter(|g| g.slot == granted.slot).collect();
            assert_eq!(own.len(), 1, "{after:?}");
            let highest = before.iter().flat_map(|lease| &lease.grants).map(|g| g.token).max();
            assert!(highest < Some(granted.token), "{highest:?} before {granted:?}");
            leases.renew(&ticket).await.expect("it stands");
            leases.leave(&ticket).await.expect("it can be left");
        }
        let token = before.and_then(|lease| lease.grants.first().map(|grant| grant.token));
        drop(leases.evict(&label, token.unwrap_or(Token(1)), true).await);
        drop(leases.resize(&label, 3).await);
        drop(leases.names().await);
        drop(leases.inspect(&label).await);
    });
}
