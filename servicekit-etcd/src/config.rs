//! Where the cluster is and who asks: parsed once, from an address or from the variables of `etcdctl`.

use std::{fmt, path::PathBuf};

use servicekit_core::{Error, Kind, Result, address};
use zeroize::Zeroizing;

/// The address of a cluster, and what it takes to be let in.
///
/// `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The members to talk to, as `host:port`; others take over when one fails.
    pub endpoints: Vec<String>,
    /// The user, where authentication is switched on.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<Zeroizing<String>>,
    /// What all keys begin with: `/` and at least one character, no `/` at the end.
    pub prefix: String,
    /// How to encrypt; `None` for not at all.
    pub tls: Option<Tls>,
}

/// How to encrypt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls {
    /// The file of the CA that signed the servers' certificates; those that the system trusts where there is none.
    pub ca: Option<PathBuf>,
    /// The files of the client's certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

const PARAMETERS: [&str; 3] = ["ca", "cert", "key"];
const DEFAULT_PORT: u16 = 2379;
const DEFAULT_PREFIX: &str = "/servicekit";

impl Config {
    /// Reads what follows the scheme: `//[user[:password]@]host[:2379][,host…][/prefix][?ca=&cert=&key=&password-file=]`.
    ///
    /// Reserved characters in user and password are written as `%` and two hexadecimal digits.
    ///
    /// # Errors
    ///
    /// `Invalid` for what makes no sense: half a TLS configuration, TLS parameters without TLS, a password without user,
    /// a parameter that nobody knows; and for a password file that cannot be read or that others may read (`Secret`).
    pub fn parse(rest: &str, encrypted: bool) -> Result<Self> {
        let mut parts = address::Parts::of(rest, &PARAMETERS).map_err(on)?;
        let (hosts, prefix) = parts.place.split_once('/').unwrap_or((parts.place, ""));
        let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>>>()?;
        let prefix = prefix_of(prefix)?;
        let mut file = |name| parts.parameters.remove(name);
        let (ca, cert, key) = (file("ca"), file("cert"), file("key"));
        let tls = Tls { ca: ca.map(Into::into), client: client_files(cert, key)? };
        if !encrypted && tls != Tls::default() {
            return Err(invalid("`ca`, `cert` and `key` need TLS: write etcds:// for etcd://"));
        }
        let (user, password) = (parts.user, parts.password);
        Ok(Self { endpoints, user, password, prefix, tls: encrypted.then_some(tls) })
    }

    /// Reads what `etcdctl` reads: `ETCDCTL_ENDPOINTS`, `_USER`, `_PASSWORD`, `_CACERT`, `_CERT` and `_KEY`; without any of
    /// them it is the server on this host.
    ///
    /// # Errors
    ///
    /// Those of [`Config::parse`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(&format!("ETCDCTL_{name}")).filter(|text| !text.is_empty());
        if set("ENDPOINTS").is_some_and(|listed| listed.contains('@')) {
            return Err(invalid("no user in ETCDCTL_ENDPOINTS: there is ETCDCTL_USER for that"));
        }
        let listed = set("ENDPOINTS").unwrap_or_else(|| format!("127.0.0.1:{DEFAULT_PORT}"));
        let bare = |url: &str| {
            let url = url.trim();
            let bare = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            endpoint(bare.unwrap_or(url).trim_end_matches('/'))
        };
        let endpoints = listed.split(',').map(bare).collect::<Result<Vec<_>>>()?;
        let tls = Tls {
            ca: set("CACERT").map(Into::into),
            client: client_files(set("CERT"), set("KEY"))?,
        };
        let encrypted = listed.contains("https://") || tls != Tls::default();
        if encrypted && listed.contains("http://") {
            let message =
                "http:// in ETCDCTL_ENDPOINTS, though https:// or a certificate asks for TLS";
            return Err(invalid(message));
        }
        // As etcdctl takes it: nothing in it is escaped.
        let login = Zeroizing::new(set("USER").unwrap_or_default());
        let (user, password) = login.split_once(':').unwrap_or((&login, ""));
        let filled = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Ok(Self {
            endpoints,
            user: filled(user),
            password: filled(password).or_else(|| set("PASSWORD")).map(Zeroizing::new),
            prefix: DEFAULT_PREFIX.into(),
            tls: encrypted.then_some(tls),
        })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoints, user, password: _, prefix, tls } = self;
        f.debug_struct("Config")
            .field("endpoints", endpoints)
            .field("user", user)
            .field("prefix", prefix)
            .field("tls", tls)
            .finish_non_exhaustive()
    }
}

fn endpoint(text: &str) -> Result<String> {
    address::endpoint(text, DEFAULT_PORT).map_err(on)
}

fn prefix_of(path: &str) -> Result<String> {
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Ok(DEFAULT_PREFIX.into());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "/-._".contains(c);
    if let Some(odd) = path.chars().find(|c| !allowed(*c)) {
        let message =
            format!("{odd:?} in the prefix /{path}; allowed are letters, digits and / - . _");
        return Err(invalid(message));
    }
    Ok(format!("/{path}"))
}

fn client_files(cert: Option<String>, key: Option<String>) -> Result<Option<(PathBuf, PathBuf)>> {
    address::client_files(cert, key).map_err(on)
}

fn invalid(message: impl Into<String>) -> Error {
    on(Error::new(Kind::Invalid, message))
}

fn on(error: Error) -> Error {
    error.on("etcd")
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use proptest::prelude::*;

    use super::*;

    fn plain(rest: &str) -> Config {
        Config::parse(rest, false).unwrap()
    }

    fn refusal(rest: &str, encrypted: bool) -> String {
        let error = Config::parse(rest, encrypted).unwrap_err();
        assert!(matches!(error.kind(), Kind::Invalid | Kind::Secret), "{error:?}");
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        error.to_string()
    }

    #[test]
    fn an_address_names_hosts_a_user_and_a_prefix() {
        let config = plain("//db1");
        assert_eq!(config.endpoints, ["db1:2379"]);
        assert_eq!((config.user, config.password, config.tls), (None, None, None));
        assert_eq!(config.prefix, "/servicekit");

        let config = plain("//ro%6ft:hu%40sh@db1:1,[fd00::1],[::1]:3/team/a/");
        assert_eq!(config.endpoints, ["db1:1", "[fd00::1]:2379", "[::1]:3"]);
        assert_eq!(config.user.as_deref(), Some("root"));
        assert_eq!(config.password.as_deref().map(String::as_str), Some("hu@sh"));
        assert_eq!(config.prefix, "/team/a");
        assert!(!format!("{config:?}").contains("hu"));
    }

    #[test]
    fn tls_is_whole_or_refused() {
        let config = Config::parse("//db1?ca=/ca.pem&cert=/c.pem&key=/k.pem", true).unwrap();
        let client = Some(("/c.pem".into(), "/k.pem".into()));
        assert_eq!(config.tls, Some(Tls { ca: Some("/ca.pem".into()), client }));
        assert_eq!(Config::parse("//db1", true).unwrap().tls, Some(Tls::default()));
        assert!(refusal("//db1?cert=/c.pem", true).contains("without its `key`"));
        assert!(refusal("//db1?key=/k.pem", true).contains("without its certificate"));
        assert!(refusal("//db1?ca=/ca.pem", false).contains("etcds://"));
        assert!(refusal("//db1?ca=", true).contains("`ca` needs one value"));
        assert!(refusal("//db1?ca=a&ca=b", true).contains("`ca` needs one value"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_without_showing_a_password() {
        for rest in [
            "",
            "db1",
            "//",
            "//db1:0",
            "//db1:x",
            "//db1:70000",
            "//db1,,db2",
            "//a b",
            "//::1",
            "//[::x]",
            "//u:hush?x@db1",
            "//u:1/hush?x@db1",
            "//u:1?hush@db1",
            "//u:1?ca=hush&hush@db1",
            "//db1/pre fix",
            "//db1?verbose=1",
            "//:hush@db1",
            "//u:hu%ffsh@db1",
        ] {
            refusal(rest, false);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(rest: String, encrypted: bool) {
            drop(Config::parse(&rest, encrypted));
        }

        #[test]
        fn no_error_shows_a_password(
            password in "[a-z%@:/?#&=]{0,6}hush[a-z%@:/?#&=]{0,6}", place in "(db1|db 1|db1:x|)(/p|/p q|)(|\\?x=1|\\?ca)",
        ) {
            if let Err(error) = Config::parse(&format!("//root:{password}@{place}"), true) {
                prop_assert!(!format!("{error} {error:?}").contains("hush"), "{:?}", error);
            }
        }
    }

    #[test]
    fn a_password_file_must_be_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "hush\n").unwrap();
        let rest = format!("//root@db1?password-file={}", path.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(refusal(&rest, false).contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(plain(&rest).password.as_deref().map(String::as_str), Some("hush"));
        assert!(refusal(&rest.replace("root@", ""), false).contains("needs a user"));
        assert!(refusal(&rest.replace("root@", "root:x@"), false).contains("one of them"));
        fs::remove_file(&path).unwrap();
        assert!(refusal(&rest, false).contains("cannot read the password file"));
    }

    #[test]
    fn the_variables_of_etcdctl_are_honoured() {
        let read = |set: &[(&str, &str)]| {
            Config::from_variables(|name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(read(&[]).unwrap().endpoints, ["127.0.0.1:2379"]);
        let config = read(&[
            ("ETCDCTL_ENDPOINTS", "https://db1:2379/, https://db2"),
            ("ETCDCTL_USER", "root:hu%41sh"),
            ("ETCDCTL_CACERT", "/ca.pem"),
        ])
        .unwrap();
        assert_eq!(config.endpoints, ["db1:2379", "db2:2379"]);
        assert_eq!(config.password.as_deref().map(String::as_str), Some("hu%41sh"));
        assert_eq!(config.tls.unwrap().ca, Some("/ca.pem".into()));
        assert!(read(&[("ETCDCTL_CERT", "/c.pem")]).is_err());
        let error = read(&[("ETCDCTL_ENDPOINTS", "http://root:hush@db1")]).unwrap_err();
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        assert!(read(&[("ETCDCTL_ENDPOINTS", "https://db1,http://db2")]).is_err());
        assert!(read(&[("ETCDCTL_ENDPOINTS", "http://db1"), ("ETCDCTL_CACERT", "/ca")]).is_err());
    }
}
