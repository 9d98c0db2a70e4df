//! The authority: makes the CA once, and hands out certificates.

use std::{sync::Arc, time::Duration};

use futures_util::try_join;
use serde::{Deserialize, Serialize};
use servicekit_core::{
    CertStore, Env, Error, Kind, Label, Namespace, Result, ServiceId, Timestamp,
};

use crate::{
    Identity, PrivateKey, San,
    issue::{self, CA_LIFETIME, Ca, Facts, Issued, Issuer, LIFETIME, MOST_NAMES, Subject},
    key::exposed,
    place,
    vault::{Entry, TRIES, Vault, contended},
};

const DAY: u64 = 86_400;

/// Issues certificates under the one CA of a namespace, and keeps them sealed in a store.
///
/// Every process with the same store, namespace and identity is the same authority.
#[derive(Debug)]
pub struct Authority {
    vault: Vault,
    namespace: Namespace,
    env: Env,
}

/// What certificate is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// The service.
    pub label: Label,
    /// The instance.
    pub service_id: ServiceId,
    /// What it has to vouch for; when empty, what the stored certificate does, and at first the service id.
    pub names: Vec<San>,
    /// How long it has to last, in whole seconds; when `None`, what was asked for before, and at first
    /// [`issue::LIFETIME`], or until the CA ends.
    pub lifetime: Option<Duration>,
}

/// A certificate, its key, and what to trust.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Certificate {
    /// What is known of it.
    pub facts: Facts,
    /// How often a certificate was issued for this instance.
    pub revision: u64,
    /// Its key.
    pub key: PrivateKey,
    /// The certificate, PEM.
    pub cert: String,
    /// The certificate and the intermediates between it and the trust anchor, in order, PEM.
    pub chain: String,
    /// The trust anchor, PEM.
    pub ca: String,
}

/// What is stored of the CA. [`Ca`] itself is not serializable, so that its key is not written by accident.
#[derive(Debug, Serialize, Deserialize)]
struct Root {
    made: Timestamp,
    not_after: Timestamp,
    cert: String,
    #[serde(with = "exposed")]
    key: PrivateKey,
}

/// What is stored of a certificate.
#[derive(Debug, Serialize, Deserialize)]
struct Leaf {
    facts: Facts,
    cert: String,
    ca: String,
    #[serde(with = "exposed")]
    key: PrivateKey,
    /// What later versions store.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

impl Request {
    /// Asks for whatever certificate this instance has, or for its first.
    #[must_use]
    pub fn new(label: Label, service_id: ServiceId) -> Self {
        Self { label, service_id, names: Vec::new(), lifetime: None }
    }

    /// Also asks for these names, and no others.
    #[must_use]
    pub fn with_names(self, names: Vec<San>) -> Self {
        Self { names, ..self }
    }

    /// Also asks for this lifetime.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }
}

/// Whether a CA was made already in this store and namespace, whatever identity opens it.
///
/// # Errors
///
/// Those of reaching the store.
pub async fn has_ca(certs: &dyn CertStore) -> Result<bool> {
    Ok(certs.get(&place::ca()?).await?.is_some())
}

impl Authority {
    /// The authority of a namespace. Nothing is read yet.
    #[must_use]
    pub fn new(
        certs: Arc<dyn CertStore>,
        namespace: Namespace,
        identity: Identity,
        env: Env,
    ) -> Self {
        Self { vault: Vault::new(certs, namespace.clone(), identity), namespace, env }
    }

    /// The certificate of an instance: the stored one if it serves, otherwise a new one, which is stored first. Where
    /// there is no CA yet it is made, exactly one, however many ask at once.
    ///
    /// The stored one serves until two thirds of its lifetime are over, unless other names or another lifetime are asked
    /// for, or the CA is another one.
    ///
    /// # Errors
    ///
    /// `Invalid` for names or a lifetime that no certificate can have; `Secret` when a record cannot be opened, was
    /// damaged, swapped, forged or rolled back; `Conflict` when others keep asking for something else; those of reaching
    /// the store. After an error a new certificate may be stored or not: asking again returns it, or a newer one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves what was stored, or a new certificate as a whole.
    pub async fn certificate(&self, request: &Request) -> Result<Certificate> {
        let request = request.check()?;
        let at = place::leaf(&request.label, &request.service_id)?;
        let ca = place::ca()?;
        let (ca, mut found) =
            try_join!(self.vault.read::<Root>(&ca), self.vault.read::<Leaf>(&at))?;
        let mut ca: Option<Ca> = ca.map(|entry| entry.content.into());
        for _ in 0..TRIES {
            let before = found.as_ref().map(|entry| &entry.content);
            // Nothing is made for a request that makes no sense.
            let subject = request.subject(before.map(|leaf| &leaf.facts))?;
            let ca = match &ca {
                Some(ca) => ca,
                None => ca.insert(self.make_ca().await?),
            };
            let now = self.env.clock.wall();
            if let Some(entry) = found.take_if(|entry| entry.content.serves(&request, ca, now)) {
                return Ok(entry.into());
            }
            let before = found.as_ref().map(|entry| &entry.content);
            if before.is_some_and(|leaf| leaf.ca != ca.cert) {
                // Whoever trusts the former one refuses the new certificate.
                tracing::warn!(certificate = %at, "the CA that issued it is gone; another one issues it anew");
            }
            let leaf = self.issue(subject, request.lifetime, before, ca, now)?;
            match self.vault.write(&at, found.as_ref(), leaf).await? {
                Some(entry) => return Ok(entry.into()),
                None => found = self.vault.read(&at).await?,
            }
        }
        Err(contended(&at))
    }

    /// Makes the CA, or reads the one that somebody else has just made.
    async fn make_ca(&self) -> Result<Ca> {
        let at = place::ca()?;
        for _ in 0..TRIES {
            let ca = issue::ca(&self.namespace, self.env.clock.wall(), &self.env.random)?;
            if let Some(entry) = self.vault.write(&at, None, Root::from(ca)).await? {
                return Ok(entry.content.into());
            }
            if let Some(entry) = self.vault.read::<Root>(&at).await? {
                return Ok(entry.content.into());
            }
        }
        Err(contended(&at))
    }

    fn issue(
        &self,
        mut subject: Subject,
        asked: Option<Duration>,
        before: Option<&Leaf>,
        ca: &Ca,
        now: Timestamp,
    ) -> Result<Leaf> {
        let issuer = Issuer::new(ca)?;
        let wanted = subject.lifetime.as_secs();
        if asked.is_none() {
            // Who asks for nothing particular gets what is left.
            subject.lifetime = subject.lifetime.min(issuer.remaining(now));
        }
        let Issued { mut facts, cert, key } = issuer.issue(&subject, now, &self.env.random)?;
        facts.lifetime_seconds = wanted;
        let rest = before.map(|leaf| leaf.rest.clone()).unwrap_or_default();
        Ok(Leaf { facts, cert, ca: ca.cert.clone(), key, rest })
    }
}

impl Request {
    /// The same request with its names in order and its lifetime in whole seconds.
    fn check(&self) -> Result<Self> {
        let mut request = self.clone();
        request.names.sort();
        request.names.dedup();
        if request.names.len() > MOST_NAMES {
            let message =
                format!("{} names; a certificate has at most {MOST_NAMES}", request.names.len());
            return Err(Error::new(Kind::Invalid, message));
        }
        if let Some(lifetime) = &mut request.lifetime {
            *lifetime = Duration::from_secs(
                lifetime.as_secs().saturating_add(u64::from(lifetime.subsec_nanos() > 0)),
            );
            if lifetime.is_zero() || *lifetime > CA_LIFETIME {
                let message = format!(
                    "a certificate cannot last {} days: a CA lasts {} days, and none outlasts it",
                    lifetime.as_secs() / DAY,
                    CA_LIFETIME.as_secs() / DAY,
                );
                return Err(Error::new(Kind::Invalid, message));
            }
        }
        Ok(request)
    }

    /// What to issue, when this is stored.
    fn subject(&self, stored: Option<&Facts>) -> Result<Subject> {
        let names = match (self.names.as_slice(), stored) {
            ([], Some(stored)) => stored.names.clone(),
            ([], None) => vec![self.service_id.as_str().parse::<San>().map_err(|invalid| {
                Error::new(
                    Kind::Invalid,
                    format!(
                        "the service id is no name for a certificate, give it names (--san): {invalid}"
                    ),
                )
            })?],
            (asked, _) => asked.to_vec(),
        };
        let lifetime = self.lifetime.unwrap_or_else(|| {
            stored.map_or(LIFETIME, |stored| Duration::from_secs(stored.lifetime_seconds))
        });
        let (label, service_id) = (self.label.clone(), self.service_id.clone());
        Ok(Subject { label, service_id, names, lifetime })
    }
}

impl From<Ca> for Root {
    fn from(Ca { made, not_after, cert, key }: Ca) -> Self {
        Self { made, not_after, cert, key }
    }
}

impl From<Root> for Ca {
    fn from(Root { made, not_after, cert, key }: Root) -> Self {
        Self { made, not_after, cert, key }
    }
}

impl Leaf {
    /// Whether it is what is asked for.
    fn serves(&self, request: &Request, ca: &Ca, now: Timestamp) -> bool {
        let facts = &self.facts;
        let lifetime = Duration::from_secs(facts.lifetime_seconds);
        now < facts.renew_at
            && self.ca == ca.cert
            && (request.names.is_empty() || request.names == facts.names)
            && request.lifetime.is_none_or(|asked| asked == lifetime)
    }
}

impl From<Entry<Leaf>> for Certificate {
    fn from(entry: Entry<Leaf>) -> Self {
        let Entry { content: Leaf { facts, cert, ca, key, .. }, revision, .. } = entry;
        // There are no intermediates.
        let chain = cert.clone();
        Self { facts, revision, key, cert, chain, ca }
    }
}
