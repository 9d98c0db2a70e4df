//! Waiting until the service is well.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use servicekit::{
    Env,
    agent::probe::{Clients, Http, HttpOptions},
    health::{Probe as _, Verdict},
};

use crate::{context::Context, report::Failure};

/// The pause between two probes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Probes a URL until it is well.
pub(super) struct Healthy {
    probe: Http,
    env: Env,
    last: Mutex<String>,
}

impl Healthy {
    pub(super) fn new(url: &str, context: &Context) -> Result<Self, Failure> {
        let env = context.env.clone();
        let probe = Http::new(HttpOptions::new(url), &mut Clients::default(), env.clock.clone());
        let probe = probe.map_err(|error| Failure::Usage(format!("--until-healthy: {error}")))?;
        Ok(Self { probe, env, last: Mutex::new("not yet probed".into()) })
    }

    /// Ends after the first success.
    pub(super) async fn wait(&self) {
        while let Verdict::Fail(why) = self.probe.check().await {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = why;
            self.env.clock.sleep(self.env.random.jitter(INTERVAL, 0.1)).await;
        }
    }

    /// What the last probe that failed said.
    pub(super) fn last(&self) -> String {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Healthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Healthy").field(&self.probe).finish()
    }
}
