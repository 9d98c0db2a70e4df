//! The members of a cluster: one connection to the one that works, and the next when it fails.

use std::{
    fmt, fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error as EtcdError, Identity, ResponseHeader, TlsOptions,
};
use futures_util::future::join_all;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use servicekit_core::{
    Effect, Env, Error, Kind, Result, address::refuse_exposed, clock::timeout, store::Limits,
};
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use crate::{
    config::{Config, Tls},
    error::{explain, is_of_this_login, is_of_this_member, silent},
};

/// How long a connection may be silent before it is asked for a sign of life, and how long that may take. etcd cuts off
/// who asks more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// The largest answer: a page of records of a hundred kilobytes each, far more than servicekit writes.
pub(crate) const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The connections to the members. Only one is used at a time, for as long as it works: who comes back after a failure
/// is not run down.
pub(crate) struct Cluster {
    env: Env,
    /// How long a member may take; less than the wrapper gives an attempt, so that the answer tells why, and the next
    /// one is asked.
    patience: Duration,
    options: ConnectOptions,
    members: Vec<Member>,
    current: AtomicUsize,
}

struct Member {
    /// Without scheme, for messages.
    endpoint: String,
    url: String,
    client: OnceCell<Arc<Client>>,
    /// The latest term of the cluster that it has answered in.
    term: AtomicU64,
}

impl Cluster {
    /// Reads the files that `config` names; connects to nobody yet.
    pub(crate) fn new(config: &Config, env: Env, limits: Limits) -> Result<Self> {
        let patience = limits.attempt.mul_f64(0.8);
        let mut options = ConnectOptions::new()
            .with_connect_timeout(patience)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(user) = &config.user {
            let Some(password) = &config.password else {
                let message = format!(
                    "the user {user:?} needs a password: set SERVICEKIT_PASSWORD, or name a file with ?password-file="
                );
                return Err(invalid(message));
            };
            options = options.with_user(user, password.as_str());
        }
        let scheme = if let Some(tls) = &config.tls {
            options = options.with_tls(tls_options(tls)?);
            "https"
        } else {
            "http"
        };
        let member = |endpoint: &String| Member {
            endpoint: endpoint.clone(),
            url: format!("{scheme}://{endpoint}"),
            client: OnceCell::new(),
            term: AtomicU64::new(0),
        };
        let members: Vec<_> = config.endpoints.iter().map(member).collect();
        if members.is_empty() {
            return Err(invalid("no host is named".into()));
        }
        // All hosts are told the same list, and must not all use its first.
        let many = u64::try_from(members.len()).unwrap_or(u64::MAX);
        let first = usize::try_from(env.random.below(many)).unwrap_or(0);
        Ok(Self { env, patience, options, members, current: AtomicUsize::new(first) })
    }

    /// Asks the current member; the next time another one, when this does not answer or cannot serve.
    pub(crate) async fn ask<T, F>(
        &self,
        effect: Effect,
        request: impl FnOnce(Arc<Client>) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        self.ask_at(self.current(), effect, request).await
    }

    /// Asks one member, and leaves it when it does not answer or cannot serve.
    pub(crate) async fn ask_at<T, F>(
        &self,
        member: usize,
        effect: Effect,
        request: impl FnOnce(Arc<Client>) -> F + Send,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        let Member { endpoint, url, client, .. } = &self.members[member];
        let (clock, patience) = (&*self.env.clock, self.patience);
        let mut sent = Effect::Nothing;
        let asking = async {
            // Logging in is a request of its own, where there is a user. The futures of tonic are large.
            let connect = || Box::pin(Client::connect([url], Some(self.options.clone())));
            let connected =
                client.get_or_try_init(|| async { connect().await.map(Arc::new) }).await?.clone();
            sent = effect;
            Box::pin(request(connected)).await
        };
        let error = match timeout(clock, patience, asking).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if is_of_this_login(&error) => {
                self.renew_login(client).await;
                return Err(explain(error, sent));
            }
            Ok(Err(error)) if !is_of_this_member(&error) => return Err(explain(error, sent)),
            Ok(Err(error)) => explain(error, sent),
            Err(_) => silent(endpoint, patience, sent),
        };
        self.leave(member);
        Err(error)
    }

    /// Asks every member by itself; for a doctor.
    pub(crate) async fn ask_each<T, F>(
        &self,
        request: impl Fn(Arc<Client>) -> F + Send + Sync,
    ) -> Vec<(&str, Result<T>)>
    where
        T: Send,
        F: Future<Output = Result<T, EtcdError>> + Send,
    {
        let request = &request;
        let asked = self.members.iter().enumerate().map(|(i, member)| async move {
            (member.endpoint.as_str(), self.ask_at(i, Effect::Nothing, request).await)
        });
        join_all(asked).await
    }

    /// Logs in again. `etcd-client` does so by itself for a token that has expired, but not in the middle of a stream, and
    /// not when users or roles were changed.
    async fn renew_login(&self, client: &OnceCell<Arc<Client>>) {
        let Some(client) = client.get() else { return };
        let renewed = timeout(&*self.env.clock, self.patience, client.refresh_token()).await;
        if !matches!(renewed, Ok(Ok(()))) {
            tracing::debug!("could not log in again; the next request tells why");
        }
    }

    /// The latest term that a member has answered in, 0 for none; a term has one leader.
    pub(crate) fn term(&self, member: usize) -> u64 {
        self.members[member].term.load(Ordering::Relaxed)
    }

    /// Takes note of the term that a member has answered in.
    pub(crate) fn heard(&self, member: usize, header: Option<&ResponseHeader>) {
        let term = header.map_or(0, ResponseHeader::raft_term);
        self.members[member].term.fetch_max(term, Ordering::Relaxed);
    }

    /// Goes on to the next member, unless somebody else did already.
    pub(crate) fn leave(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        let left =
            self.current.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
        if left.is_ok() && next != member {
            let (from, to) = (&self.members[member].endpoint, &self.members[next].endpoint);
            tracing::info!(%from, %to, "going on with another member of the cluster");
        }
    }

    /// How long a member may take.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// The member that is asked now.
    pub(crate) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }
}

fn tls_options(tls: &Tls) -> Result<TlsOptions> {
    let mut options = TlsOptions::new();
    options = match &tls.ca {
        Some(ca) => options.ca_certificate(Certificate::from_pem(certificate("CA", ca)?)),
        None => options.with_enabled_roots(),
    };
    if let Some((cert, key)) = &tls.client {
        refuse_exposed("client's key", key, 0o007).map_err(|error| error.on("etcd"))?;
        let (cert, key) = (certificate("client certificate", cert)?, private_key(key)?);
        options = options.identity(Identity::from_pem(cert, key.as_slice()));
    }
    Ok(options)
}

/// The certificates of a PEM file; without a look at them now, one that has none would be found out by a handshake that
/// fails.
fn certificate(what: &str, path: &Path) -> Result<Vec<u8>> {
    let pem = read(what, path)?;
    let mut certificates = CertificateDer::pem_slice_iter(&pem);
    match certificates.next() {
        Some(Ok(_)) if certificates.all(|certificate| certificate.is_ok()) => Ok(pem.to_vec()),
        _ => Err(invalid(format!("there is no {what} (PEM) in {}", path.display()))),
    }
}

fn private_key(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let pem = read("client's key", path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(_) => Ok(pem),
        Err(_) => Err(invalid(format!("there is no private key (PEM) in {}", path.display()))),
    }
}

fn read(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    fs::read(path).map(Zeroizing::new).map_err(|error| {
        invalid(format!("cannot read the {what} in {}", path.display())).because(error)
    })
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message).on("etcd")
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.members.iter().map(|member| &member.endpoint);
        f.debug_struct("Cluster")
            .field("members", &endpoints.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}
