//! The one error type: made for deciding what to do next.

use std::{error::Error as StdError, fmt};

/// The result of everything that can reach a store.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A condition did not hold: somebody else was faster.
    Conflict,
    /// The store refuses these credentials, or does not let them do this.
    Denied,
    /// The request makes no sense, here or anywhere.
    Invalid,
    /// What had to be kept alive has ended.
    Lost,
    /// What was named is not there.
    NotFound,
    /// A secret is missing, cannot be read, or opens nothing.
    Secret,
    /// A newer incarnation owns this.
    Superseded,
    /// The store asks to slow down.
    Throttled,
    /// No answer came in time.
    Timeout,
    /// The store cannot be reached, or cannot serve now.
    Unavailable,
    /// This store cannot keep the promise that was asked for.
    Unsupported,
    /// Something that should not happen; the message says what was seen.
    Unexpected,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Retry {
    /// The same request would fail again.
    Never,
    /// Nothing was applied: send it again.
    Safe,
    /// It may have been applied, or may still be; only a later conditional write to the same record settles it.
    Unknown,
    /// It was sent again as often as the time allowed; do not multiply the load.
    Exhausted,
}

/// Whether a request of a store changes something: then an answer that was lost leaves it unknown. For who writes a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there is no third")]
pub enum Effect {
    /// It only reads, or sending it twice does what sending it once does.
    Nothing,
    /// It may change a record.
    Write,
}

impl Effect {
    /// What to do after a request whose fate is not known.
    #[must_use]
    pub fn unsettled(self) -> Retry {
        match self {
            Self::Nothing => Retry::Safe,
            Self::Write => Retry::Unknown,
        }
    }

    /// What to do after a refusal that nobody knows: a read would be refused again, and a write may have been applied.
    #[must_use]
    pub fn unsettled_or_never(self) -> Retry {
        match self {
            Self::Nothing => Retry::Never,
            Self::Write => Retry::Unknown,
        }
    }
}

/// What failed, where, and whether to try again.
///
/// `Display` is one line without the source; walk [`StdError::source`] for the cause.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    retry: Retry,
    message: String,
    operation: Option<&'static str>,
    backend: Option<&'static str>,
    key: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`; not to be retried unless [`Error::retry_as`] says otherwise.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: Retry::Never,
            message: message.into(),
            operation: None,
            backend: None,
            key: None,
            source: None,
        }))
    }

    /// Sets whether the request may be sent again.
    #[must_use]
    pub fn retry_as(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Names the operation, unless one is named already.
    #[must_use]
    pub fn during(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Names the backend, unless one is named already.
    #[must_use]
    pub fn on(mut self, backend: &'static str) -> Self {
        self.0.backend.get_or_insert(backend);
        self
    }

    /// Names the record, unless one is named already.
    #[must_use]
    pub fn at(mut self, key: impl fmt::Display) -> Self {
        self.0.key.get_or_insert_with(|| key.to_string());
        self
    }

    /// Attaches the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the same request may be sent again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The message alone, without place and operation.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether waiting may help: the store is away, slow or busy.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.kind(), Kind::Throttled | Kind::Timeout | Kind::Unavailable)
    }

    /// Whether the store refuses for good: waiting is in vain, but whoever starts the process again, set up otherwise, may get in.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind(), Kind::Denied | Kind::Invalid | Kind::Unsupported)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { backend, operation, key, message, .. } = &*self.0;
        if let Some(backend) = backend {
            write!(f, "{backend}: ")?;
        }
        match (operation, key) {
            (Some(operation), Some(key)) => write!(f, "{operation} {key}: ")?,
            (Some(operation), None) => write!(f, "{operation}: ")?,
            (None, Some(key)) => write!(f, "{key}: ")?,
            (None, None) => {}
        }
        f.write_str(message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?}, retry {:?})", self.0.kind, self.0.retry)?;
        let mut source = self.source();
        while let Some(cause) = source {
            write!(f, "\n  because: {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<crate::Invalid> for Error {
    fn from(invalid: crate::Invalid) -> Self {
        Self::new(Kind::Invalid, invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_without_the_source() {
        let error = Error::new(Kind::Unavailable, "cannot open the file")
            .during("put")
            .on("local")
            .at("default/lease/web/head")
            .because(std::io::Error::other("no such device"));
        assert_eq!(error.to_string(), "local: put default/lease/web/head: cannot open the file");
        assert!(format!("{error:?}").contains("because: no such device"));
        assert!(error.is_transient());
    }
}
