//! Names, parsed once, at the edge; a backend never escapes.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Names a service and a lease: `[a-z0-9]`, then `[a-z0-9._-]`, at most 63 characters; upper case is folded.
///
/// ```
/// use servicekit_core::Label;
/// let label: Label = "Web".parse().unwrap();
/// assert_eq!(label.as_str(), "web");
/// assert!("web/1".parse::<Label>().unwrap_err().to_string().contains("'/' at character 4"));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

/// Names an instance within a label: 1 to 128 of `[A-Za-z0-9._:@-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceId(Arc<str>);

/// Keeps environments apart in one store; the same alphabet as [`Label`], `default` unless named.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Arc<str>);

/// Names a record within a group of a store; the same alphabet as [`ServiceId`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// Says which character of a name is wrong, where, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?}: {problem}")]
pub struct Invalid {
    what: &'static str,
    text: String,
    problem: String,
}

impl Invalid {
    /// A value of kind `what` that is wrong because of `problem`; `text` is cut to 80 characters.
    pub fn new(what: &'static str, text: &str, problem: impl Into<String>) -> Self {
        let text = text.chars().take(80).collect();
        Self { what, text, problem: problem.into() }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self("default".into())
    }
}

impl From<&Label> for Name {
    fn from(label: &Label) -> Self {
        Self(label.0.clone())
    }
}

impl From<&ServiceId> for Name {
    fn from(id: &ServiceId) -> Self {
        Self(id.0.clone())
    }
}

/// What a kind of name allows.
struct Rule {
    what: &'static str,
    longest: usize,
    allowed: &'static str,
    first: fn(char) -> bool,
    rest: fn(char) -> bool,
}

const LABEL: Rule = Rule {
    what: "label",
    longest: 63,
    allowed: "a letter or digit first, then letters, digits, '.', '_' or '-'",
    first: |c| c.is_ascii_lowercase() || c.is_ascii_digit(),
    rest: |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c),
};
const NAMESPACE: Rule = Rule { what: "namespace", ..LABEL };
const SERVICE_ID: Rule = Rule {
    what: "service id",
    longest: 128,
    allowed: "letters, digits, '.', '_', ':', '@' or '-'",
    first: |c| c.is_ascii_alphanumeric() || "._:@-".contains(c),
    rest: |c| c.is_ascii_alphanumeric() || "._:@-".contains(c),
};
const NAME: Rule = Rule { what: "name", ..SERVICE_ID };

impl Rule {
    fn check(&self, text: &str) -> Result<(), Invalid> {
        if text.is_empty() {
            return Err(Invalid::new(self.what, text, "must not be empty"));
        }
        for (i, c) in text.chars().enumerate() {
            let fine = if i == 0 { (self.first)(c) } else { (self.rest)(c) };
            if !fine {
                let problem = format!("{c:?} at character {}; allowed are {}", i + 1, self.allowed);
                return Err(Invalid::new(self.what, text, problem));
            }
        }
        let long = text.chars().count();
        if long > self.longest {
            let problem = format!("{long} characters; at most {} are allowed", self.longest);
            return Err(Invalid::new(self.what, text, problem));
        }
        Ok(())
    }
}

macro_rules! name {
    ($name:ident, $rule:expr, $fold:expr) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                let folded = if $fold { text.to_ascii_lowercase() } else { text.to_owned() };
                $rule.check(&folded)?;
                Ok(Self(folded.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name!(Label, LABEL, true);
name!(ServiceId, SERVICE_ID, false);
name!(Namespace, NAMESPACE, true);
name!(Name, NAME, false);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wrong_characters_are_named_with_their_place() {
        let message = "we b".parse::<Label>().unwrap_err().to_string();
        assert_eq!(
            message,
            "label \"we b\": ' ' at character 3; allowed are a letter or digit first, then letters, digits, '.', '_' or '-'"
        );
        assert!("-web".parse::<Label>().is_err());
        assert!("".parse::<ServiceId>().unwrap_err().to_string().contains("empty"));
        assert!("x".repeat(64).parse::<Label>().unwrap_err().to_string().contains("at most 63"));
        assert!("x".repeat(129).parse::<ServiceId>().is_err());
    }

    proptest! {
        #[test]
        fn what_parses_survives_json(text in "\\PC{0,70}") {
            if let Ok(label) = text.parse::<Label>() {
                let json = serde_json::to_string(&label).unwrap();
                prop_assert_eq!(serde_json::from_str::<Label>(&json).unwrap(), label);
            }
        }
    }
}
