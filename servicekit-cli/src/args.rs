//! Parsers of arguments. Each error says what is wrong in a few words; clap adds where.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    time::Duration,
};

use clap::builder::TypedValueParser;
use servicekit::{Label, ServiceId, lease::Token};

/// How long to wait for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Try once.
    Once,
    /// So long.
    For(Duration),
    /// Never give up.
    Forever,
}

/// A host, and a port where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// The longest duration that makes sense: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Patience {
    /// As long as the store can be told; `None` for not at all.
    pub(crate) fn limit(self) -> Option<Duration> {
        match self {
            Self::Once => None,
            Self::For(duration) => Some(duration),
            Self::Forever => Some(LONGEST),
        }
    }
}

/// `500ms`, `15s`, `4m`, `2h`, `7d`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err("expected a whole number and ms, s, m, h or d, such as 15s".into()),
    };
    if number.is_empty() {
        return Err("expected a number first, such as 15s".into());
    }
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(millis));
    match millis.map(Duration::from_millis) {
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err("more than a hundred years".into()),
    }
}

/// A duration that is not zero.
pub(crate) fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than zero".into()),
        duration => Ok(duration),
    }
}

/// A duration, 0 for once, or `forever`.
pub(crate) fn patience(text: &str) -> Result<Patience, String> {
    if text == "forever" {
        return Ok(Patience::Forever);
    }
    Ok(match duration(text).map_err(|problem| format!("{problem}; or forever"))? {
        Duration::ZERO => Patience::Once,
        duration => Patience::For(duration),
    })
}

/// `HOST` or `HOST:PORT`; an IPv6 address before a port is in brackets.
pub(crate) fn host_port(text: &str) -> Result<HostPort, String> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok(HostPort { host: text.into(), port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((_, port)) if port.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(self::port(port)?)),
        None => (text, None),
    };
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(Some(address)) if address.parse::<Ipv6Addr>().is_ok() => address,
        Some(_) => return Err("what is in brackets is no IPv6 address".into()),
        None => host,
    };
    if let Some(problem) = host_problem(host) {
        return Err(problem);
    }
    Ok(HostPort { host: host.into(), port })
}

/// `HOST:PORT`.
pub(crate) fn host_and_port(text: &str) -> Result<HostPort, String> {
    match host_port(text)? {
        HostPort { port: None, .. } => Err("expected a port, as in HOST:PORT".into()),
        full => Ok(full),
    }
}

/// Why `host` cannot be a host name or an address.
pub(crate) fn host_problem(host: &str) -> Option<String> {
    if host.parse::<Ipv6Addr>().is_ok() {
        return None;
    }
    if host.is_empty() || host.len() > 253 {
        return Some("a host has 1 to 253 characters".into());
    }
    // A program that is given the host as an argument would take it for an option.
    if host.starts_with('-') {
        return Some("a host does not begin with '-'".into());
    }
    let wrong = |c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c);
    if let Some((at, what)) = host.chars().enumerate().find(|(_, c)| wrong(*c)) {
        return Some(format!("{what:?} at character {} of the host", at + 1));
    }
    // One name that no resolver takes, and HAProxy refuses the whole file that it is in.
    let odd = |part: &str| part.len() > 63 || part.starts_with('-') || part.ends_with('-');
    if let Some(part) = host.split('.').find(|part| part.is_empty() || odd(part)) {
        return Some(format!(
            "{part:?} between the dots of the host: it takes 1 to 63 characters, and no '-' first or last"
        ));
    }
    let is_number = host.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_ok());
    if is_number && host.parse::<Ipv4Addr>().is_err() {
        return Some("the host ends with a number and is no IPv4 address".into());
    }
    None
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

/// A whole number in a range.
pub(crate) fn number(range: RangeInclusive<u32>) -> impl TypedValueParser<Value = u32> {
    move |text: &str| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(match (range.start(), range.end()) {
            (least, &u32::MAX) => format!("expected a whole number from {least}"),
            (least, most) => format!("expected a whole number from {least} to {most}"),
        }),
    }
}

/// The token of a grant.
pub(crate) fn token(text: &str) -> Result<Token, &'static str> {
    let number = text.parse().map(Token);
    number.map_err(|_| "expected the number that `servicekit leases` shows for the grant")
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

/// `NAME: VALUE`.
pub(crate) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().into(), value.trim().into()))
        }
        _ => Err("expected 'NAME: VALUE'".into()),
    }
}

/// The id of the instance of `label` on this host, unless another one is named.
pub(crate) fn default_service_id(label: &Label) -> Result<ServiceId, String> {
    let id = format!("{label}-{}", hostname());
    id.parse()
        .map_err(|problem| format!("this host's name does not do; give --service-id: {problem}"))
}

/// What this host calls itself.
pub(crate) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_plain_numbers_are_seconds() {
        let millis = |text| duration(text).map(|duration| duration.as_millis());
        assert_eq!(millis("500ms"), Ok(500));
        assert_eq!(millis("15s"), Ok(15_000));
        assert_eq!(millis("15"), Ok(15_000));
        assert_eq!(millis("4m"), Ok(240_000));
        assert_eq!(millis("7d"), Ok(604_800_000));
        for wrong in
            ["", "s", "-1s", "1.5s", "1 s", "5 minutes", "1S", "99999999999999999999", "40000d"]
        {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(positive("0ms").is_err());
        assert_eq!(patience("0"), Ok(Patience::Once));
        assert_eq!(patience("forever"), Ok(Patience::Forever));
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        let parts = |text| host_port(text).map(|HostPort { host, port }| (host, port));
        assert_eq!(parts("db-1.example:5432"), Ok(("db-1.example".into(), Some(5432))));
        assert_eq!(parts("10.0.0.1"), Ok(("10.0.0.1".into(), None)));
        assert_eq!(parts("::1"), Ok(("::1".into(), None)));
        assert_eq!(parts("[fe80::2]:80"), Ok(("fe80::2".into(), Some(80))));
        assert_eq!(parts("[fe80::2]"), Ok(("fe80::2".into(), None)));
        for wrong in
            ["", ":80", "a:0", "a:70000", "a b", "a,b:1", "[a]:1", "a:", "http://a", "-a:1"]
        {
            assert!(host_port(wrong).is_err(), "{wrong}");
        }
        assert_eq!(host_port("we b").unwrap_err(), "' ' at character 3 of the host");
    }
}
