//! Leases over the memory store, in each of its profiles, on the real clock.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use servicekit_core::{
    Backend, Env, Label, Namespace,
    lease::{self, Request, Standing, Term},
    store::{Limits, Memory, Profile},
};

fn backend(profile: Profile) -> (Backend, Env) {
    let env = Env::system();
    let store = Arc::new(Memory::new(env.clone(), profile));
    let namespace = Namespace::default();
    (Backend::over("memory", store, namespace, env.clone(), Limits::default()), env)
}

fn request(holder: &str, wait: Option<Duration>) -> Request {
    Request {
        holder: holder.parse().unwrap(),
        term: Term::Attended { ttl: Duration::from_millis(900) },
        slots: 1,
        wait,
        note: String::new(),
    }
}

async fn handed_over(profile: Profile) {
    let (backend, env) = backend(profile);
    let lease: Label = "web".parse().unwrap();
    let wait = Some(Duration::from_secs(30));
    let first = lease::acquire(&backend.leases, &lease, &request("a", wait), &env).await.unwrap();
    let first = first.unwrap();
    let refused = backend.leases.join(&lease, &request("b", None)).await.unwrap().1;
    assert!(matches!(refused, Standing::Refused { holders } if holders[0].holder.as_str() == "a"));
    let (ticket, standing) = backend.leases.join(&lease, &request("b", wait)).await.unwrap();
    assert!(matches!(standing, Standing::Waiting { ahead: 0, .. }));
    // Long enough for an observer to end a grant that nobody renews.
    assert!(tokio::time::timeout(Duration::from_secs(2), first.lost()).await.is_err());
    let token = first.token();
    first.release().await.unwrap();
    let mut standings = backend.leases.wait(&ticket);
    let second = loop {
        match standings.next().await.unwrap().unwrap() {
            Standing::Granted(granted) => break granted,
            standing => assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}"),
        }
    };
    assert!(second.token > token);
    // The second never renews: the third gets it once the ttl is over.
    let third = lease::acquire(&backend.leases, &lease, &request("c", wait), &env).await.unwrap();
    assert!(third.unwrap().token() > second.token);
    let past = backend.leases.inspect(&lease).await.unwrap().unwrap().past;
    assert_eq!(past.len(), 2, "{past:?}");
}

#[tokio::test]
async fn a_server_hands_over() {
    handed_over(Profile::Server).await;
}

#[tokio::test]
async fn a_feed_hands_over() {
    handed_over(Profile::Feed).await;
}

#[tokio::test]
async fn a_table_hands_over() {
    handed_over(Profile::Table).await;
}
