//! Lease providers that break their promises.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::BoxStream};
use servicekit_core::{
    Backend, Capabilities, Env, Kind, Label, LeaseProvider, Result,
    lease::{Granted, Lease, Request, Standing, Ticket, Token},
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bug {
    ResetsTokens,
    RenewalProvesTheSession,
    CountsFromTheAnswer,
    EvictsByWrittenTime,
    GrantsByPosition,
    LastComeFirstServed,
    RefusalLeavesATicket,
    EvictsByForceAlways,
    WaitEndsWithTheStore,
    RenewsWithoutAnswer,
}

pub(crate) fn put_in(bug: Bug, backend: Backend, env: Env) -> Backend {
    let mutant = Mutant { bug, leases: backend.leases, env, tickets: Mutex::default() };
    Backend { leases: Arc::new(mutant), ..backend }
}

#[derive(Debug)]
struct Mutant {
    bug: Bug,
    leases: Arc<dyn LeaseProvider>,
    env: Env,
    /// Those of this process.
    tickets: Mutex<Vec<Ticket>>,
}

/// Longer than any ttl of the suite.
const LONG_AGO: Duration = Duration::from_secs(1800);

impl Mutant {
    async fn grants(&self, lease: &Label) -> Result<Vec<servicekit_core::lease::Grant>> {
        Ok(self.leases.inspect(lease).await?.map(|lease| lease.grants).unwrap_or_default())
    }

    async fn show(&self, lease: &Label, standing: Standing) -> Result<Standing> {
        Ok(match (self.bug, standing) {
            (Bug::ResetsTokens, Standing::Granted(granted)) => {
                let token = Token(self.grants(lease).await?.len() as u64);
                Standing::Granted(Granted { token, ..granted })
            }
            (Bug::CountsFromTheAnswer, Standing::Granted(granted)) => {
                Standing::Granted(Granted { counted_from: self.env.clock.now(), ..granted })
            }
            (Bug::GrantsByPosition, Standing::Waiting { ahead: 0, holders }) => {
                let token = Token(holders.iter().map(|grant| grant.token.0).max().unwrap_or(0) + 1);
                let counted_from = self.env.clock.now();
                Standing::Granted(Granted { token, slot: 0, counted_from, expires_at: None })
            }
            (_, standing) => standing,
        })
    }
}

#[async_trait]
impl LeaseProvider for Mutant {
    fn capabilities(&self) -> Capabilities {
        self.leases.capabilities()
    }

    async fn join(&self, lease: &Label, request: &Request) -> Result<(Ticket, Standing)> {
        if self.bug == Bug::EvictsByWrittenTime {
            for grant in self.grants(lease).await? {
                if self.env.clock.wall() > grant.since + LONG_AGO {
                    self.leases.leave(&grant.ticket).await?;
                }
            }
        }
        let mut asked = request.clone();
        if self.bug == Bug::RefusalLeavesATicket {
            asked.wait = Some(LONG_AGO);
        }
        let (ticket, standing) = self.leases.join(lease, &asked).await?;
        self.tickets.lock().expect("no panic while it was held").push(ticket.clone());
        let standing = match standing {
            Standing::Waiting { holders, .. } if request.wait.is_none() => {
                Standing::Refused { holders }
            }
            standing => self.show(lease, standing).await?,
        };
        Ok((ticket, standing))
    }

    async fn standing(&self, ticket: &Ticket) -> Result<Standing> {
        let standing = self.leases.standing(ticket).await?;
        self.show(ticket.lease(), standing).await
    }

    fn wait(&self, ticket: &Ticket) -> BoxStream<'static, Result<Standing>> {
        let standings = self.leases.wait(ticket);
        match self.bug {
            Bug::WaitEndsWithTheStore => {
                standings.take_while(|s| std::future::ready(s.is_ok())).boxed()
            }
            Bug::LastComeFirstServed => {
                let (leases, ticket, clock) =
                    (self.leases.clone(), ticket.clone(), self.env.clock.clone());
                let hold_back = async move {
                    // Who has others behind it leaves the turn to them.
                    loop {
                        let lease = leases.inspect(ticket.lease()).await.ok().flatten();
                        let last = lease.and_then(|lease| lease.waiting.last().cloned());
                        if last.is_none_or(|last| last.ticket == ticket) {
                            break;
                        }
                        clock.sleep(Duration::from_secs(1)).await;
                    }
                    standings
                };
                futures_util::stream::once(hold_back).flatten().boxed()
            }
            _ => standings,
        }
    }

    async fn renew(&self, ticket: &Ticket) -> Result<()> {
        let renewed = self.leases.renew(ticket).await;
        let Err(error) = renewed else { return renewed };
        match self.bug {
            Bug::RenewsWithoutAnswer if error.kind() != Kind::Lost => Ok(()),
            Bug::RenewalProvesTheSession => {
                let tickets = self.tickets.lock().expect("no panic while it was held").clone();
                for ticket in tickets {
                    if self.leases.renew(&ticket).await.is_ok() {
                        return Ok(());
                    }
                }
                Err(error)
            }
            _ => Err(error),
        }
    }

    async fn leave(&self, ticket: &Ticket) -> Result<()> {
        self.leases.leave(ticket).await
    }

    async fn names(&self) -> Result<Vec<Label>> {
        self.leases.names().await
    }

    async fn inspect(&self, lease: &Label) -> Result<Option<Lease>> {
        self.leases.inspect(lease).await
    }

    async fn resize(&self, lease: &Label, slots: u32) -> Result<()> {
        self.leases.resize(lease, slots).await
    }

    async fn evict(&self, lease: &Label, token: Token, force: bool) -> Result<()> {
        let force = force || self.bug == Bug::EvictsByForceAlways;
        self.leases.evict(lease, token, force).await
    }
}
