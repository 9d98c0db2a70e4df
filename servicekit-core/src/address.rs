//! What the addresses of stores have in common, for who writes a backend: who asks, where, and parameters.

use std::{
    collections::BTreeMap,
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use crate::{Error, Kind, Result};

/// The parameter that names a file with a password in it.
const PASSWORD_FILE: &str = "password-file";

/// The parts of `//[user[:password]@]place[?parameters]`, decoded where they may hold anything.
///
/// `Debug` shows no password.
#[expect(clippy::exhaustive_structs, reason = "taken apart by backends")]
pub struct Parts<'a> {
    /// The user, where there is one.
    pub user: Option<String>,
    /// That user's password, from the address or the file that it names.
    pub password: Option<Zeroizing<String>>,
    /// The hosts, and what follows them.
    pub place: &'a str,
    /// Each parameter once; no value is empty.
    pub parameters: BTreeMap<&'static str, String>,
}

impl<'a> Parts<'a> {
    /// Takes apart what follows the scheme. `known` are the parameters, besides `password-file`.
    ///
    /// Reserved characters in user and password are written as `%` and two hexadecimal digits.
    ///
    /// # Errors
    ///
    /// `Invalid` for a parameter that nobody knows, twice or without a value, and for a password without a user; those of the
    /// password file, which are `Secret`. None shows a password, however it was written.
    pub fn of(rest: &'a str, known: &[&'static str]) -> Result<Self> {
        let Some(rest) = rest.strip_prefix("//") else {
            return Err(invalid("expected `//` and a host after the scheme"));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if query.contains('@') && !is_query(query, known) {
            // Then all of it may be a part of a password, and must not be in a message.
            return Err(invalid("in a user and a password write %3F for `?`, and %40 for `@`"));
        }
        // A password may hold a `/` that nobody escaped; a host never holds an `@`.
        let (login, place) = match place.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, place),
        };
        let (user, mut password) = login.map(credentials).transpose()?.unwrap_or_default();
        let mut parameters = parameters(query, known)?;
        if let Some(file) = parameters.remove(PASSWORD_FILE)
            && password.replace(password_from(&file)?).is_some()
        {
            return Err(invalid("a password and a `password-file`: give one of them"));
        }
        if password.is_some() && user.is_none() {
            return Err(invalid("a password needs a user: write USER@ before the host"));
        }
        Ok(Self { user, password, place, parameters })
    }

    /// Whether a parameter is `true`; it is not when it is missing.
    ///
    /// # Errors
    ///
    /// `Invalid` for anything but `true` and `false`.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.parameters.get(name).map(String::as_str) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(invalid(format!("`{name}` is true or false, not {other:?}"))),
        }
    }
}

impl fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password: _, place, parameters } = self;
        f.debug_struct("Parts")
            .field("user", user)
            .field("place", place)
            .field("parameters", parameters)
            .finish_non_exhaustive()
    }
}

/// `host[:port]`, where an IPv6 address stands in brackets, with the port that is meant.
///
/// # Errors
///
/// `Invalid` for anything else.
pub fn endpoint(text: &str, default_port: u16) -> Result<String> {
    let refused = || {
        let example = format!("such as db1:{default_port} or [fd00::1]:{default_port}");
        Err(invalid(format!("{text:?} is not a host with an optional port, {example}")))
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fine = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    match port.map_or(Ok(default_port), str::parse) {
        Ok(port @ 1..) if fine => Ok(format!("{host}:{port}")),
        _ => refused(),
    }
}

/// The files of a client's certificate and its key, which go together.
///
/// # Errors
///
/// `Invalid` for one without the other.
pub fn client_files(
    cert: Option<String>,
    key: Option<String>,
) -> Result<Option<(PathBuf, PathBuf)>> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some((cert.into(), key.into()))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(invalid("a client certificate (`cert`) without its `key`")),
        (None, Some(_)) => Err(invalid("a client's `key` without its certificate (`cert`)")),
    }
}

/// Refuses a file with a secret in it that those whom `mask` stands for may read.
///
/// # Errors
///
/// `Secret`, also when the file cannot be looked at.
pub fn refuse_exposed(what: &str, path: &Path, mask: u32) -> Result<()> {
    let secret = |message| Error::new(Kind::Secret, message);
    let path_shown = path.display();
    let metadata = fs::metadata(path)
        .map_err(|error| secret(format!("cannot read the {what} {path_shown}")).because(error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & mask == 0 {
        return Ok(());
    }
    let message = format!(
        "others than its owner may read the {what} {path_shown} (mode {mode:03o}); chmod 600 it, and think of replacing \
         the secret"
    );
    Err(secret(message))
}

fn parameters(query: &str, known: &[&'static str]) -> Result<BTreeMap<&'static str, String>> {
    let mut parameters = BTreeMap::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = decoded(value)?;
        let Some(name) = all(known).find(|known| *known == name) else {
            let known = all(known).collect::<Vec<_>>().join(", ");
            return Err(invalid(format!("unknown parameter {name:?}; known are {known}")));
        };
        if value.is_empty() || parameters.insert(name, value).is_some() {
            return Err(invalid(format!("`{name}` needs one value")));
        }
    }
    Ok(parameters)
}

/// The parameters of an address that may hold anything are files.
fn is_query(text: &str, known: &[&'static str]) -> bool {
    text.split('&').all(|parameter| {
        let name = parameter.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| all(known).any(|known| known == name))
    })
}

fn all(known: &[&'static str]) -> impl Iterator<Item = &'static str> {
    known.iter().copied().chain([PASSWORD_FILE])
}

fn credentials(login: &str) -> Result<(Option<String>, Option<Zeroizing<String>>)> {
    let (user, password) = match login.split_once(':') {
        Some((user, password)) => (user, Some(Zeroizing::new(decoded(password)?))),
        None => (login, None),
    };
    let user = decoded(user)?;
    if user.is_empty() {
        return Err(invalid("there is no user before the `@`"));
    }
    Ok((Some(user), password))
}

fn password_from(path: &str) -> Result<Zeroizing<String>> {
    refuse_exposed("password file", Path::new(path), 0o077)?;
    let text = fs::read_to_string(path).map_err(|error| {
        Error::new(Kind::Secret, format!("cannot read the password file {path}")).because(error)
    });
    let text = Zeroizing::new(text?);
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

/// Never says the text, which may be a password.
fn decoded(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let message = "a `%` with two hexadecimal digits after it is not UTF-8";
    decoded.map(Into::into).map_err(|_| invalid(message))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message)
}
