//! What every command is given: the store, the time, and the requests to end.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use futures_util::future::{Either, select};
use servicekit::{
    Backend, Connector, Env, Error, Instant, Kind, Namespace,
    clock::timeout,
    connect::{Address, Options, Password},
    store::Limits,
};

use crate::{
    args, output,
    report::{Failure, chain, say},
    signals::{Signal, Signals},
};

/// The flags that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The store: local:, local:/path/file.db, etcd://host[:2379], dynamodb://REGION/TABLE, couchdb://host/DATABASE, memory:
    // Not parsed by clap, whose errors would show a password.
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help_heading = "Store",
        default_value = "local:",
        env = "SERVICEKIT_BACKEND",
        hide_env_values = true
    )]
    backend: String,
    /// Keeps environments apart in one store
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Store",
        default_value = "default",
        env = "SERVICEKIT_NAMESPACE",
        hide_env_values = true
    )]
    namespace: Namespace,
    /// How long a command that only asks tries to reach the store
    #[arg(
        long, global = true, value_name = "DURATION", help_heading = "Store", default_value = "10s",
        env = "SERVICEKIT_STORE_TIMEOUT", hide_env_values = true, value_parser = args::positive
    )]
    store_timeout: Duration,
    /// The key that opens certificates; beside the store where that is a file of this host
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Store",
        env = "SERVICEKIT_IDENTITY",
        hide_env_values = true
    )]
    identity: Option<PathBuf>,
}

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) env: Env,
    pub(crate) connector: Connector,
    address: Address,
    namespace: Namespace,
    store_timeout: Duration,
    identity: Option<PathBuf>,
}

/// The pause after a store could not be reached.
const PAUSE: Duration = Duration::from_millis(500);

impl Context {
    pub(crate) fn new(connector: Connector, global: Global) -> Result<Self, Failure> {
        let Global { backend, namespace, store_timeout, identity } = global;
        let address = backend
            .parse::<Address>()
            .map_err(|error| Failure::Usage(format!("--backend (SERVICEKIT_BACKEND): {error}")))?;
        let env = Env::system();
        Ok(Self { env, connector, address, namespace, store_timeout, identity })
    }

    /// The address of the store; its `Display` has no password.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The identity file that the caller named, if any.
    pub(crate) fn identity(&self) -> Option<&Path> {
        self.identity.as_deref()
    }

    /// The variables of this process's environment that have a password of the store.
    pub(crate) fn secret_variables(&self) -> Vec<&'static str> {
        let mut variables = vec!["SERVICEKIT_PASSWORD"];
        variables.extend(self.address.has_password().then_some("SERVICEKIT_BACKEND"));
        variables.extend(self.address.password_variables());
        variables
    }

    /// Connects to the store, also when it takes its time at first: a file that somebody keeps locked.
    pub(crate) async fn connect(&self) -> Result<Backend, Failure> {
        // Before the whole command has taken too long, so that it fails with the message of the store.
        let deadline = self.env.clock.now() + self.store_timeout.mul_f64(0.9);
        let mut error = match self.connect_once().await {
            Err(Failure::Store(error)) if error.kind() == Kind::Timeout => error,
            answer => return answer,
        };
        let again = || async {
            self.env.clock.sleep(self.env.random.jitter(PAUSE, 0.5)).await;
            self.connect_once().await
        };
        while let Some(answer) = self.until(deadline, again()).await {
            match answer {
                Err(Failure::Store(again)) if again.kind() == Kind::Timeout => error = again,
                answer => return answer,
            }
        }
        Err(error.into())
    }

    async fn connect_once(&self) -> Result<Backend, Failure> {
        let options = Options {
            namespace: self.namespace.clone(),
            env: self.env.clone(),
            limits: self.limits(),
            password: password()?,
        };
        let connecting = async {
            let connected = self.connector.connect(&self.address, options).await;
            connected.map_err(|error| match error.operation() {
                // The address made sense, and what it leads to does not: no usage is wrong.
                Some(_) => Failure::Store(error),
                None => error.into(),
            })
        };
        self.ask(connecting).await
    }

    /// Connects to the store, also when it is away at first, until the deadline if there is one.
    pub(crate) async fn connect_by(&self, deadline: Option<Instant>) -> Result<Backend, Failure> {
        let mut outage = Outage::default();
        loop {
            let error = match self.connect_once().await {
                Err(Failure::Store(error)) if error.is_transient() => error,
                answer => {
                    outage.back();
                    return answer;
                }
            };
            if deadline.is_some_and(|deadline| self.env.clock.now() + PAUSE >= deadline) {
                return Err(error.into());
            }
            outage.away(&error);
            self.env.clock.sleep(self.env.random.jitter(PAUSE, 0.5)).await;
        }
    }

    /// Runs a command that only asks: it ends when it is told to, or when the store took too long.
    pub(crate) fn ask<'a, T: 'a>(
        &'a self,
        question: impl Future<Output = Result<T, Failure>> + Send + 'a,
    ) -> impl Future<Output = Result<T, Failure>> + 'a {
        self.ask_and_wait(Duration::ZERO, question)
    }

    /// Runs a command that asks, and may wait for so long on the way.
    pub(crate) async fn ask_and_wait<T>(
        &self,
        wait: Duration,
        question: impl Future<Output = Result<T, Failure>> + Send,
    ) -> Result<T, Failure> {
        let limit = self.store_timeout.saturating_add(wait);
        let mut question = pin!(question);
        match timeout(&*self.env.clock, limit, &mut question).await {
            Ok(answer) => answer,
            Err(_) if output::has_begun() => question.await,
            Err(_) => {
                let message =
                    format!("no answer within {:?} (--store-timeout)", self.store_timeout);
                Err(Error::new(Kind::Timeout, message).into())
            }
        }
    }

    /// Runs something until `deadline`; `None` when that came first.
    pub(crate) async fn until<T>(
        &self,
        deadline: Instant,
        work: impl Future<Output = T> + Send,
    ) -> Option<T> {
        match select(pin!(work), self.env.clock.sleep_until(deadline)).await {
            Either::Left((output, _)) => Some(output),
            Either::Right(((), _)) => None,
        }
    }

    /// The limits of one operation, so that it fails with its own message before the whole command does.
    fn limits(&self) -> Limits {
        let attempt = (self.store_timeout / 3).min(Limits::default().attempt);
        Limits { attempt, total: self.store_timeout.saturating_sub(attempt).mul_f64(0.75) }
    }
}

/// Runs something until it ends or a request to end comes.
pub(crate) async fn unless_told<T>(
    signals: &mut Signals,
    work: impl Future<Output = T>,
) -> Result<T, Signal> {
    match select(pin!(work), pin!(signals.next())).await {
        Either::Left((output, _)) => Ok(output),
        Either::Right((signal, _)) => Err(signal),
    }
}

/// The password of the store's user, if there is one in the environment; a variable that is empty is not set.
fn password() -> Result<Option<Password>, Failure> {
    let password = std::env::var_os("SERVICEKIT_PASSWORD").filter(|text| !text.is_empty());
    let text = password.map(|password| password.into_string()).transpose();
    // What it is instead must not be shown.
    let text = text.map_err(|_| Failure::Usage("SERVICEKIT_PASSWORD is not UTF-8".into()))?;
    Ok(text.map(Password::new))
}

/// Files may be slow, or pipes that nobody writes to; a signal is heard all the same.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::Host(format!("a thread has failed: {error}")))?
}

/// Whether the store is away, said once.
#[derive(Debug, Default)]
pub(crate) struct Outage(bool);

impl Outage {
    pub(crate) fn away(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.0, true) {
            say(format_args!("the store is away, trying on: {}", chain(error)));
        }
    }

    pub(crate) fn back(&mut self) {
        if std::mem::replace(&mut self.0, false) {
            say("the store is back");
        }
    }
}
