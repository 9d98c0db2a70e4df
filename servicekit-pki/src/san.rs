//! What a certificate vouches for: a DNS name or an address.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use servicekit_core::Invalid;

/// A subject alternative name: a DNS name, perhaps with `*` as its first label, or an IP address.
///
/// DNS names are lower-cased and lose a dot at their end; addresses have one notation. So two that mean the same are equal.
///
/// ```
/// use servicekit_pki::San;
/// assert_eq!("Web-1.Example.com.".parse::<San>().unwrap().to_string(), "web-1.example.com");
/// assert_eq!("2001:DB8:0::1".parse::<San>().unwrap().to_string(), "2001:db8::1");
/// assert!("web_1".parse::<San>().unwrap_err().to_string().contains("'_' at character 4"));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct San(Kind);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Dns(Arc<str>),
    Ip(IpAddr),
}

impl San {
    /// The address, if it is one.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self.0 {
            Kind::Ip(address) => Some(address),
            Kind::Dns(_) => None,
        }
    }
}

impl FromStr for San {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Ok(address) = text.parse::<IpAddr>() {
            // Who connects to a mapped address connects to the IPv4 address in it.
            return Ok(Self(Kind::Ip(address.to_canonical())));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        match problem(name) {
            None => Ok(Self(Kind::Dns(name.to_ascii_lowercase().into()))),
            Some(problem) => {
                Err(Invalid::new("name", text, format!("neither DNS name nor address: {problem}")))
            }
        }
    }
}

/// Why `name` is no host name. Underscores are refused because the JVM and others refuse them in certificates.
fn problem(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it is empty".into());
    }
    if name.len() > 253 {
        return Some(format!("{} bytes; at most 253 are allowed", name.len()));
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    let skipped = name.len() - host.len();
    let wrong = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.';
    if let Some((at, c)) = host.chars().enumerate().find(|(_, c)| wrong(*c)) {
        return Some(format!("{c:?} at character {}", skipped + at + 1));
    }
    for label in host.split('.') {
        if label.is_empty() {
            return Some("nothing before or after a dot".into());
        }
        if label.len() > 63 {
            return Some(format!("{label:?} has more than 63 characters"));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Some(format!("{label:?} begins or ends with '-'"));
        }
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        // Some resolvers take such a name for an address.
        return Some(format!("it ends with the number {last}, and is no address"));
    }
    None
}

impl TryFrom<String> for San {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<San> for String {
    fn from(san: San) -> Self {
        san.to_string()
    }
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Dns(name) => f.pad(name),
            Kind::Ip(address) => address.fmt(f),
        }
    }
}

impl fmt::Debug for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_addresses_have_one_notation() {
        for (text, expected) in [
            ("localhost", "localhost"),
            ("WEB-1", "web-1"),
            ("*.Example.com", "*.example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.example", "1.example"),
            ("10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("FE80::0:1", "fe80::1"),
        ] {
            let san: San = text.parse().unwrap();
            assert_eq!(san.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_neither_says_why() {
        let long = "a".repeat(64);
        let longest = ["a"; 128].join(".");
        for (text, said) in [
            ("", "empty"),
            ("a b", "' ' at character 2"),
            ("web@1", "'@' at character 4"),
            ("bücher.example", "'ü' at character 2"),
            ("a..b", "before or after a dot"),
            (".a", "before or after a dot"),
            ("-a", "begins or ends"),
            ("a-.b", "begins or ends"),
            ("*", "'*' at character 1"),
            ("a.*.b", "'*' at character 3"),
            ("*.", "'*' at character 1"),
            ("10.0.0.256", "the number 256"),
            ("10.0.0.1:80", "':' at character 9"),
            ("fe80::1%eth0", "':' at character 5"),
            (long.as_str(), "more than 63"),
            (longest.as_str(), "at most 253"),
        ] {
            let problem = text.parse::<San>().unwrap_err().to_string();
            assert!(problem.contains(said), "{text}: {problem}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_has_a_fixed_point(text in "(\\PC{0,20}|[a-z0-9.:*-]{0,40})") {
            if let Ok(san) = text.parse::<San>() {
                prop_assert_eq!(san.to_string().parse::<San>().unwrap(), san);
            }
        }
    }
}
