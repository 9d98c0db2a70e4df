//! Where the database is and who asks: parsed once, from an address.

use std::{fmt, path::PathBuf};

use servicekit_core::{
    Error, Kind, Result,
    address::{Parts, client_files, endpoint},
};
use zeroize::Zeroizing;

/// The address of a database, and what it takes to be let in.
///
/// `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The server, as `host:port`.
    pub endpoint: String,
    /// The database; what beats is kept beside it, in one whose name ends in `-sessions`.
    pub database: String,
    /// The user, where the server wants one.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<Zeroizing<String>>,
    /// Whether to encrypt.
    pub encrypted: bool,
    /// The file of the CA that signed the server's certificate; those that the system trusts where there is none.
    pub ca: Option<PathBuf>,
    /// The files of the client's certificate and its key, where the server wants one.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether to make the databases where they are missing.
    pub create: bool,
    /// Whether to use leases also where the database has several nodes or copies, which may each grant the same one.
    pub unsafe_leases: bool,
}

const PARAMETERS: [&str; 5] = ["ca", "cert", "create", "key", "unsafe-leases"];
const DEFAULT_PORT: u16 = 5984;
const DEFAULT_TLS_PORT: u16 = 6984;
const DEFAULT_DATABASE: &str = "servicekit";
/// So that a name is a name of files too, with what is appended.
const LONGEST_DATABASE: usize = 200;

impl Config {
    /// Reads what follows the scheme:
    /// `//[user[:password]@]host[:5984]/database[?create=true&ca=&cert=&key=&password-file=&unsafe-leases=true]`; nothing at
    /// all is the database `servicekit` on this host.
    ///
    /// Reserved characters in user and password are written as `%` and two hexadecimal digits.
    ///
    /// # Errors
    ///
    /// `Invalid` for what makes no sense: a name that no database has, half a TLS configuration, TLS parameters without TLS, a
    /// password without user, a parameter that nobody knows; and for a password file that cannot be read or that others may read (`Secret`).
    pub fn parse(rest: &str, encrypted: bool) -> Result<Self> {
        let default_port = if encrypted { DEFAULT_TLS_PORT } else { DEFAULT_PORT };
        let nothing = format!("//127.0.0.1/{DEFAULT_DATABASE}");
        let rest = if rest.is_empty() { nothing.as_str() } else { rest };
        let on = |error: Error| error.on("couchdb");
        let mut parts = Parts::of(rest, &PARAMETERS).map_err(on)?;
        let (host, database) = parts.place.split_once('/').unwrap_or((parts.place, ""));
        let mut file = |name| parts.parameters.remove(name);
        let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
        let config = Self {
            endpoint: endpoint(host, default_port).map_err(on)?,
            database: database_of(database.trim_end_matches('/'))?,
            ca: ca.map(Into::into),
            client: client_files(cert, key).map_err(on)?,
            create: parts.flag("create").map_err(on)?,
            unsafe_leases: parts.flag("unsafe-leases").map_err(on)?,
            user: parts.user,
            password: parts.password,
            encrypted,
        };
        if !encrypted && (config.ca.is_some() || config.client.is_some()) {
            return Err(invalid(
                "`ca`, `cert` and `key` need TLS: write couchdbs:// for couchdb://",
            ));
        }
        Ok(config)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            endpoint,
            database,
            user,
            password: _,
            encrypted,
            ca,
            client,
            create,
            unsafe_leases,
        } = self;
        f.debug_struct("Config")
            .field("endpoint", endpoint)
            .field("database", database)
            .field("user", user)
            .field("encrypted", encrypted)
            .field("ca", ca)
            .field("client", client)
            .field("create", create)
            .field("unsafe_leases", unsafe_leases)
            .finish_non_exhaustive()
    }
}

/// A name by CouchDB's own rule, without `/`.
fn database_of(text: &str) -> Result<String> {
    if text.is_empty() {
        return Err(invalid("the address names no database: write //HOST/DATABASE"));
    }
    // Of what CouchDB allows, `+` is left out: it takes one in an address for a space.
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_$()-".contains(c);
    let first = text.starts_with(|c: char| c.is_ascii_lowercase());
    if !first || !text.chars().all(allowed) {
        let message = format!(
            "{text:?} is not a database: a lower-case letter first, then those, digits and _ $ ( ) -"
        );
        return Err(invalid(message));
    }
    if text.len() > LONGEST_DATABASE {
        return Err(invalid(format!(
            "a database's name has at most {LONGEST_DATABASE} characters"
        )));
    }
    Ok(text.into())
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message).on("couchdb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_host_a_user_and_a_database() {
        let config = Config::parse("//db1/fleet", false).unwrap();
        assert_eq!((&*config.endpoint, &*config.database), ("db1:5984", "fleet"));
        assert_eq!((config.user, config.password, config.create), (None, None, false));

        let all = "//ad%6din:hu%40sh@[fd00::1]/fleet/?ca=/ca.pem&cert=/c.pem&key=/k.pem&create=true&unsafe-leases=true";
        let config = Config::parse(all, true).unwrap();
        assert_eq!((&*config.endpoint, config.encrypted), ("[fd00::1]:6984", true));
        assert_eq!(config.user.as_deref(), Some("admin"));
        assert_eq!(config.client, Some(("/c.pem".into(), "/k.pem".into())));
        assert_eq!(config.password.as_deref().map(String::as_str), Some("hu@sh"));
        assert_eq!((config.create, config.unsafe_leases), (true, true));
        assert!(!format!("{:?}", Config::parse(all, true).unwrap()).contains("hu@sh"));

        let config = Config::parse("", false).unwrap();
        assert_eq!((&*config.endpoint, &*config.database), ("127.0.0.1:5984", "servicekit"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (rest, says) in [
            ("fleet", "`//` and a host"),
            ("//db1", "names no database"),
            ("//db1/", "names no database"),
            ("//db1/Fleet", "not a database"),
            ("//db1/_users", "not a database"),
            ("//db1/a/b", "not a database"),
            ("//db1:x/fleet", "not a host"),
            ("///fleet", "not a host"),
            ("//db1/fleet?create=yes", "true or false"),
            ("//db1/fleet?create=true&create=true", "one value"),
            ("//db1/fleet?verbose=1", "unknown parameter"),
            ("//db1/fleet?ca=/ca.pem", "couchdbs://"),
            ("//db1/fleet?cert=/c.pem&key=/k.pem", "couchdbs://"),
            ("//db1/fleet?cert=/c.pem", "without its `key`"),
            ("//db1/fleet?key=/k.pem", "without its certificate"),
            ("//@db1/fleet", "no user"),
            ("//u:hu?sh@db1/fleet", "%3F"),
            ("//db1/fleet?password-file=/none/hush", "cannot read"),
        ] {
            let error = Config::parse(rest, false).unwrap_err();
            assert!(error.message().contains(says), "{rest}: {error}");
        }
        let error = Config::parse("//u:%ffhush@db1/fleet", false).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
}
