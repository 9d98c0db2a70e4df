//! A private key that does not show itself.

use std::fmt;

use zeroize::Zeroizing;

/// A private key, PKCS#8 in PEM.
///
/// `Debug` does not show it, and its memory is wiped when it is dropped. What a caller, a serializer or an allocator has
/// copied meanwhile is not.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(Zeroizing<String>);

impl PrivateKey {
    /// Takes a key in PEM; nothing is checked until it is used.
    #[must_use]
    pub fn from_pem(pem: String) -> Self {
        Self(Zeroizing::new(pem))
    }

    /// The key itself. Whoever calls this keeps it out of logs, arguments and files that others can read.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

/// For records, which are sealed before they go anywhere. The type itself is not serializable, so that nothing else is
/// written by accident.
pub(crate) mod exposed {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::PrivateKey;

    pub(crate) fn serialize<S: Serializer>(key: &PrivateKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(key.expose())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PrivateKey, D::Error> {
        String::deserialize(from).map(PrivateKey::from_pem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_does_not_show_it() {
        let key = PrivateKey::from_pem("-----BEGIN PRIVATE KEY-----\nsecret".into());
        assert_eq!(format!("{key:?} {:#?}", Some(&key)).matches("secret").count(), 0);
        assert!(key.expose().ends_with("secret"));
    }
}
