//! Sealed records in a store: each bound to its name, and guarded against being put back from an older state.
//!
//! Beside each record stands a *mark*, sealed likewise, with the highest revision that was written. The record is written
//! first, then its mark, so that a mark is never ahead; a record behind its mark was put back by somebody. A writer that
//! ended between the two leaves a mark one behind, which whoever comes next raises.

use std::sync::Arc;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use servicekit_core::{
    CertStore, Error, Kind, Name, Namespace, Result, Retry,
    cert::Sealed,
    store::{Expect, Version},
};
use zeroize::Zeroizing;

use crate::{
    Identity, place,
    seal::{self, Problem},
};

/// Reads and writes the sealed records of one namespace.
#[derive(Debug)]
pub(crate) struct Vault {
    certs: Arc<dyn CertStore>,
    namespace: Namespace,
    identity: Identity,
}

/// A record that was read or written: its content, and what to write the next on.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) content: T,
    pub(crate) revision: u64,
    version: Version,
    mark: Mark,
}

/// The highest revision that is known to have been written; 0 and no version where there is no mark.
#[derive(Clone, Debug, Default)]
struct Mark {
    revision: u64,
    version: Option<Version>,
}

/// What is sealed. `content` comes last, so that a person who opens it finds the rest at once.
#[derive(Serialize, Deserialize)]
struct Document<T> {
    v: u32,
    namespace: Namespace,
    name: Name,
    revision: u64,
    content: T,
}

/// The format that this version writes, and the only one that it reads.
const FORMAT: u32 = 1;

/// How often to read again when others keep writing.
pub(crate) const TRIES: usize = 16;

/// More than any record of ours takes.
const LONGEST: usize = 256 * 1024;

/// More than the longest document takes, so that its buffer never grows and leaves a copy of a key behind.
const ROOM: usize = 128 * 1024;

impl Vault {
    pub(crate) fn new(certs: Arc<dyn CertStore>, namespace: Namespace, identity: Identity) -> Self {
        Self { certs, namespace, identity }
    }

    /// Reads a record, and makes sure that its mark has caught up.
    pub(crate) async fn read<T: DeserializeOwned + Send>(
        &self,
        name: &Name,
    ) -> Result<Option<Entry<T>>> {
        for _ in 0..TRIES {
            // In this order: whatever is written between the two makes the record newer, never the mark.
            let mark = self.read_mark(name).await?;
            let found = self.certs.get(name).await?;
            let Some(Sealed { bytes, version }) = found else {
                return match mark.revision {
                    0 => Ok(None),
                    marked => Err(refuse(
                        name,
                        format!("is missing, and its mark says that revision {marked} was written"),
                    )),
                };
            };
            let (revision, content) = self.open(name, &bytes)?;
            if revision < mark.revision {
                let marked = mark.revision;
                return Err(refuse(
                    name,
                    format!(
                        "was rolled back: it has revision {revision}, and its mark says {marked}"
                    ),
                ));
            }
            if revision <= mark.revision.saturating_add(1) {
                let mark = self.raise(name, mark, revision).await?;
                return Ok(Some(Entry { content, revision, version, mark }));
            }
            // Either others have written more than once meanwhile, or the mark is not what it was.
        }
        Err(refuse(name, "is ahead of its mark, which was rolled back or removed"))
    }

    /// Writes a record in place of `before`, or as the first. `None` when somebody else was faster, or may have been:
    /// read again.
    ///
    /// After an error, or when it is dropped, the record may be written or not, and its mark may be one behind.
    pub(crate) async fn write<T: Serialize + Send + Sync>(
        &self,
        name: &Name,
        before: Option<&Entry<T>>,
        content: T,
    ) -> Result<Option<Entry<T>>> {
        let (revision, expect, mark) = match before {
            Some(Entry { revision, version, mark, .. }) => {
                (revision.saturating_add(1), Expect::At(version.clone()), mark.clone())
            }
            None => (1, Expect::Absent, Mark::default()),
        };
        let sealed = self.seal(name, revision, &content)?;
        match self.certs.put(name, sealed.as_bytes(), expect).await {
            Ok(version) => {
                let mark = self.raise(name, mark, revision).await?;
                Ok(Some(Entry { content, revision, version, mark }))
            }
            Err(error) if is_contended(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn read_mark(&self, record: &Name) -> Result<Mark> {
        let name = place::mark(record)?;
        match self.certs.get(&name).await? {
            None => Ok(Mark::default()),
            Some(Sealed { bytes, version }) => {
                let (revision, ()) = self.open(&name, &bytes)?;
                Ok(Mark { revision, version: Some(version) })
            }
        }
    }

    /// Makes sure that the mark of a record says at least `revision`.
    async fn raise(&self, record: &Name, mut mark: Mark, revision: u64) -> Result<Mark> {
        let name = place::mark(record)?;
        for _ in 0..TRIES {
            if mark.revision >= revision {
                return Ok(mark);
            }
            let sealed = self.seal(&name, revision, &())?;
            let expect = mark.version.map_or(Expect::Absent, Expect::At);
            match self.certs.put(&name, sealed.as_bytes(), expect).await {
                Ok(version) => return Ok(Mark { revision, version: Some(version) }),
                Err(error) if is_contended(&error) => mark = self.read_mark(record).await?,
                Err(error) => return Err(error),
            }
        }
        Err(contended(&name))
    }

    fn seal<T: Serialize>(&self, name: &Name, revision: u64, content: &T) -> Result<String> {
        let (namespace, name) = (self.namespace.clone(), name.clone());
        let document = Document { v: FORMAT, namespace, name, revision, content };
        let mut json = Zeroizing::new(Vec::with_capacity(ROOM));
        serde_json::to_writer(&mut *json, &document).map_err(|error| {
            Error::new(Kind::Unexpected, "cannot be written as JSON").because(error)
        })?;
        seal::seal(&self.identity, &json)
    }

    fn open<T: DeserializeOwned>(&self, name: &Name, sealed: &[u8]) -> Result<(u64, T)> {
        if sealed.len() > LONGEST {
            return Err(refuse(
                name,
                format!("has {} bytes, which no record of ours has", sealed.len()),
            ));
        }
        let document = seal::open(&self.identity, sealed).map_err(|problem| match problem {
            Problem::OpensNothing => {
                let ours = self.identity.described();
                refuse(
                    name,
                    format!(
                        "{problem}; the identity in use is {ours}; the right one is the file that others who use this \
                         store name (--identity), the one beside an embedded store, or your copy of it"
                    ),
                )
            }
            _ => refuse(name, problem.to_string()),
        })?;
        parse(&self.namespace, name, &document)
    }
}

/// Reads a document that belongs at `name`, and returns its revision and content.
fn parse<T: DeserializeOwned>(
    namespace: &Namespace,
    name: &Name,
    document: &[u8],
) -> Result<(u64, T)> {
    #[derive(Deserialize)]
    struct Format {
        v: u32,
    }
    // Only who has the identity can have written it, so what follows is no attack, but another version or a mistake.
    let unreadable = |error: serde_json::Error| {
        Error::new(Kind::Unexpected, "what is sealed is no document of servicekit")
            .at(name)
            .because(error)
    };
    let Format { v } = serde_json::from_slice(document).map_err(unreadable)?;
    if v != FORMAT {
        let message = format!("the record has format {v}; this servicekit reads {FORMAT}");
        return Err(Error::new(Kind::Unsupported, message).at(name));
    }
    let document: Document<&serde_json::value::RawValue> =
        serde_json::from_slice(document).map_err(unreadable)?;
    if (&document.namespace, &document.name) != (namespace, name) {
        let (namespace, found) = (document.namespace, document.name);
        return Err(refuse(
            name,
            format!("was swapped: it holds {found} of namespace {namespace}"),
        ));
    }
    let content = serde_json::from_str(document.content.get()).map_err(unreadable)?;
    Ok((document.revision, content))
}

/// Why a record is not used. What to do about it is in `docs/certificates.md`.
fn refuse(name: &Name, problem: impl Into<String>) -> Error {
    Error::new(Kind::Secret, format!("the sealed record {}", problem.into())).at(name)
}

/// Whether somebody else has written, or this very write may have been applied or may still be: reading, and writing on
/// the condition of what was read, settles all of these.
fn is_contended(error: &Error) -> bool {
    error.kind() == Kind::Conflict || error.retry() == Retry::Unknown
}

/// Others were faster, again and again.
pub(crate) fn contended(name: &Name) -> Error {
    Error::new(Kind::Conflict, "others keep changing it; try again").retry_as(Retry::Safe).at(name)
}
