//! Who wants a lease: what every case on leases does, and does again where faults happen by plan.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use servicekit_core::{
    Instant, Kind, Label, LeaseProvider,
    lease::{self, Granted, Lease, Obtained, Request, Standing, Term, Ticket},
    store::{Group, Record},
};

use crate::suite::world::{World, id, is_fault, label};

/// A process that wants one lease.
pub(super) struct Contender<'a> {
    pub(super) world: &'a World,
    pub(super) leases: Arc<dyn LeaseProvider>,
    pub(super) lease: Label,
    pub(super) request: Request,
}

/// A grant that somebody holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) ticket: Ticket,
    pub(super) granted: Granted,
    /// When the answer was there.
    pub(super) known: Instant,
}

/// A lease that nobody used before is wanted, attended, by one holder, who waits long.
pub(super) fn contender<'a>(world: &'a World, holder: &str) -> Contender<'a> {
    let request = Request {
        holder: id(holder),
        term: Term::Attended { ttl: world.ttl() },
        slots: 1,
        wait: Some(Duration::from_secs(3600)),
        note: String::new(),
    };
    Contender { world, leases: world.process().leases, lease: label("lease"), request }
}

impl Contender<'_> {
    pub(super) fn slots(mut self, slots: u32) -> Self {
        self.request.slots = slots;
        self
    }

    pub(super) fn term(mut self, term: Term) -> Self {
        self.request.term = term;
        self
    }

    pub(super) fn not_waiting(mut self) -> Self {
        self.request.wait = None;
        self
    }

    /// Joins; where faults happen, until it succeeds.
    pub(super) async fn join(&self) -> (Ticket, Standing) {
        self.world.ok("join", || self.leases.join(&self.lease, &self.request)).await
    }

    /// Joins, and has to be granted at once.
    pub(super) async fn granted(&self) -> Held {
        let (ticket, standing) = self.join().await;
        match standing {
            Standing::Granted(granted) => self.held(ticket, granted),
            other => panic!("{} is not granted but {other:?}", self.request.holder),
        }
    }

    /// Joins, and has to wait.
    pub(super) async fn waiting(&self) -> Ticket {
        let (ticket, standing) = self.join().await;
        match standing {
            Standing::Waiting { .. } => ticket,
            other => panic!("{} does not wait but is {other:?}", self.request.holder),
        }
    }

    /// Waits until the grant comes, for at most the patience of the world beyond `longest`.
    pub(super) async fn wait_for(&self, ticket: &Ticket, longest: Duration) -> Option<Held> {
        let standings = self.leases.wait(ticket);
        let waiting = self.until_decided(standings);
        let limit = longest + self.world.patience();
        match servicekit_core::clock::timeout(&*self.world.env.clock, limit, waiting).await {
            Ok(Some(granted)) => Some(self.held(ticket.clone(), granted)),
            Ok(None) => None,
            Err(_) => panic!("{} is not granted within {limit:?}", self.request.holder),
        }
    }

    /// Waits until the grant comes, and must not miss its turn.
    pub(super) async fn wait(&self, ticket: &Ticket, longest: Duration) -> Held {
        let held = self.wait_for(ticket, longest).await;
        held.unwrap_or_else(|| panic!("{} is gone from the queue", self.request.holder))
    }

    /// Joins and waits, again where a turn was missed.
    pub(super) async fn obtain(&self, longest: Duration) -> Held {
        loop {
            let (ticket, standing) = self.join().await;
            match standing {
                Standing::Granted(granted) => return self.held(ticket, granted),
                Standing::Waiting { .. } => {
                    if let Some(held) = self.wait_for(&ticket, longest).await {
                        return held;
                    }
                }
                Standing::Refused { .. } | Standing::Gone => {}
            }
            assert!(self.world.setting.has_faults, "{} missed its turn", self.request.holder);
        }
    }

    /// Does what a command that tries once does.
    pub(super) async fn try_once(&self) -> Obtained {
        let Self { world, leases, lease, request } = self;
        lease::obtain(leases, lease, request, &world.env, |_| {}).await.expect("no fault")
    }

    async fn until_decided(
        &self,
        mut standings: impl futures_util::Stream<Item = servicekit_core::Result<Standing>>
        + Unpin
        + Send,
    ) -> Option<Granted> {
        while let Some(standing) = standings.next().await {
            match standing {
                Ok(Standing::Granted(granted)) => {
                    assert!(standings.next().await.is_none(), "the stream goes on after a grant");
                    return Some(granted);
                }
                Ok(Standing::Gone) => return None,
                Ok(Standing::Waiting { .. }) => {}
                Ok(Standing::Refused { .. }) => panic!("who waits is refused"),
                Err(error) => assert!(is_fault(&error), "{error:?}"),
            }
        }
        panic!("the stream ended without a decision")
    }

    fn held(&self, ticket: Ticket, granted: Granted) -> Held {
        Held { ticket, granted, known: self.world.now() }
    }

    pub(super) async fn leave(&self, ticket: &Ticket) {
        self.world.ok("leave", || self.leases.leave(ticket)).await;
    }

    /// Renews, and returns when that was sent.
    pub(super) async fn renew(&self, ticket: &Ticket) -> Instant {
        let sent = self.world.now();
        self.leases.renew(ticket).await.expect("renew");
        sent
    }

    /// Renewing has to say that the grant is gone.
    pub(super) async fn expect_lost(&self, ticket: &Ticket) {
        let error = self.leases.renew(ticket).await.expect_err("the grant is gone");
        assert_eq!(error.kind(), Kind::Lost, "{error:?}");
    }

    /// Keeps a grant alive for so long, without any guard.
    pub(super) async fn keep(&self, ticket: &Ticket, duration: Duration) {
        let Term::Attended { ttl } = self.request.term else { return };
        let until = self.world.now() + duration;
        while self.world.now() < until {
            self.world.pass((ttl / 3).min(until.since(self.world.now()))).await;
            self.renew(ticket).await;
        }
    }

    pub(super) async fn inspect(&self) -> Lease {
        let lease = self.world.ok("inspect", || self.leases.inspect(&self.lease)).await;
        lease.expect("the lease was used")
    }

    /// The records of the lease, as core lays them out.
    pub(super) async fn records(&self) -> Vec<Record> {
        let group = Group::scoped(&self.world.namespace, "lease", &(&self.lease).into());
        self.world
            .ok("list", || async { self.world.store().list(std::slice::from_ref(&group)).await })
            .await
    }
}

impl Held {
    pub(super) fn token(&self) -> u64 {
        self.granted.token.0
    }
}
