//! [`Doctor`] over any store: does what servicekit does, on a scratch record, and says what it saw.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{FORMAT, put_json};
use crate::{
    Capabilities, Doctor, Env, Error, Finding, Kind, Name, Namespace, Result,
    store::{Expect, Group, Keep, Reliable, Store as _},
};

/// The doctor over a store.
#[derive(Debug)]
pub(crate) struct Examiner {
    store: Arc<Reliable>,
    group: Group,
    env: Env,
}

impl Examiner {
    pub(crate) fn new(store: Arc<Reliable>, namespace: &Namespace, env: Env) -> Self {
        Self { store, group: Group::of(namespace, "scratch"), env }
    }

    /// Writes, keeps, reads, lists and deletes a scratch record; ends with how long the slowest step took.
    async fn round_trip(&self) -> Result<Duration> {
        #[derive(serde::Serialize)]
        struct Scratch {
            v: u32,
        }
        let clock = &self.env.clock;
        let mut slowest = Duration::ZERO;
        let mut began = clock.now();
        let mut lap = || {
            let now = clock.now();
            slowest = slowest.max(now.since(began));
            began = now;
        };
        let (key, put) = loop {
            let name: Name = format!("x-{}", self.env.random.below(4096)).parse()?;
            let key = self.group.key(name);
            let keep = Keep::Ephemeral(Duration::from_secs(10));
            let value = Scratch { v: FORMAT };
            let put = put_json(&self.env.random, &key, &value, Expect::Absent, keep)?;
            lap();
            match self.store.put(&put).await {
                // Another doctor's.
                Err(error) if error.kind() == Kind::Conflict => {}
                answer => break (key, answer.map(|_| put)?),
            }
        };
        lap();
        let version = self.store.touch(&key, &put.write).await?;
        lap();
        let found = self.store.get(&key).await?.is_some_and(|record| record.write == put.write);
        lap();
        let listed = self.store.list(std::slice::from_ref(&self.group)).await?;
        lap();
        if !found || !listed.iter().any(|record| record.key == key) {
            return Err(
                Error::new(Kind::Unexpected, "what was written cannot be read back").at(&key)
            );
        }
        self.store.delete(&key, &version).await?;
        lap();
        Ok(slowest)
    }
}

#[async_trait]
impl Doctor for Examiner {
    async fn examine(&self) -> Vec<Finding> {
        let mut findings = vec![match self.round_trip().await {
            Ok(slowest) => {
                let detail =
                    format!("put, touch, get, list and delete work; the slowest took {slowest:?}");
                Finding::fine("operations", detail)
            }
            Err(error) => Finding::problem("operations", error.to_string(), remedy(&error)),
        }];
        let Capabilities { linearizable, multi_host, server_expiry, push_watch, min_ttl, .. } =
            self.store.capabilities();
        findings.push(if linearizable {
            Finding::fine("leases", "exclusive: the store judges conditions as one server would")
        } else {
            let remedy = "use leases on another store";
            Finding::warning("leases", "refused: the store cannot promise exclusion", remedy)
        });
        let scope = if multi_host {
            "all hosts that reach the store"
        } else {
            "processes of this host only"
        };
        findings.push(Finding::fine("scope", scope));
        let expiry =
            if server_expiry { "by the store" } else { "by observation, one ttl at least" };
        findings
            .push(Finding::fine("expiry", format!("{expiry}; the shortest ttl is {min_ttl:?}")));
        let changes = if push_watch { "pushed" } else { "polled" };
        findings.push(Finding::fine("changes", changes));
        findings
    }

    async fn set_up(&self) -> Vec<Finding> {
        vec![Finding::fine("setup", "there is nothing to set up")]
    }
}

fn remedy(error: &Error) -> String {
    match error.kind() {
        Kind::Denied => "grant this user what docs/backends says that servicekit needs",
        Kind::Unavailable | Kind::Timeout => "see that the store runs and can be reached from here",
        Kind::Throttled => "wait, or give the store more capacity",
        _ => "see the message; the store does not behave as it must",
    }
    .into()
}
