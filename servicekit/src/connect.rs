//! From the address of a store to a [`Backend`]. The only file that knows which backends are compiled in.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use servicekit_core::{
    Backend, Env, Error, Kind, Namespace, Result,
    store::{Limits, Memory, Profile},
};
use zeroize::Zeroizing;

/// Connects to the store at `url` with the backends that are compiled in and the default [`Options`].
///
/// # Errors
///
/// Those of [`Connector::connect`].
pub async fn connect(url: &str) -> Result<Backend> {
    Connector::builtin().connect(&url.parse()?, Options::default()).await
}

/// Knows how to connect to the stores of some schemes.
///
/// ```
/// # use std::sync::Arc;
/// use servicekit::{Backend, Connector, store::{Memory, Profile}};
/// let connector = Connector::builtin().with("mine", |address, options| async move {
///     assert_eq!(address.rest(), "//host/path");
///     let store = Arc::new(Memory::new(options.env.clone(), Profile::Feed));
///     Ok(Backend::over("mine", store, options.namespace, options.env, options.limits))
/// });
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let backend = connector.connect(&"mine://host/path".parse()?, Default::default()).await?;
/// assert_eq!(backend.name, "mine");
/// # Ok::<(), servicekit::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Connector(BTreeMap<String, Open>);

type Open = Arc<dyn Fn(Address, Options) -> BoxFuture<'static, Result<Backend>> + Send + Sync>;

/// What all backends take.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by callers, by struct update")]
pub struct Options {
    /// Keeps environments apart in one store.
    pub namespace: Namespace,
    /// The clock and the randomness.
    pub env: Env,
    /// How long requests may take.
    pub limits: Limits,
    /// The password of the store's user, where the address names a user and no password.
    pub password: Option<Password>,
}

/// A password; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

/// The address of a store: a scheme, and what its backend makes of the rest.
///
/// A name without a colon is a scheme alone: the default address of that backend. Neither `Display` nor `Debug` shows a
/// password; [`Address::rest`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    scheme: String,
    rest: String,
}

/// Who can reach a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "who asks has to decide for each")]
pub enum Reach {
    /// This process alone; the store ends with it.
    Process,
    /// The processes of this host; the store is this file.
    Host(PathBuf),
    /// Other hosts too, as far as is known.
    Shared,
}

/// Schemes that belong to backends which a build may lack, and the features that bring them.
const FEATURES: [(&str, &str); 6] = [
    ("couchdb", "couchdb"),
    ("couchdbs", "couchdb"),
    ("dynamodb", "dynamodb"),
    ("etcd", "etcd"),
    ("etcds", "etcd"),
    ("local", "local"),
];

impl Connector {
    /// Knows `memory:` and the backends that are compiled in.
    #[must_use]
    pub fn builtin() -> Self {
        let connector = Self(BTreeMap::new()).with("memory", memory);
        #[cfg(feature = "couchdb")]
        let connector = connector.with("couchdb", couchdb).with("couchdbs", couchdb);
        #[cfg(feature = "dynamodb")]
        let connector = connector.with("dynamodb", dynamodb);
        #[cfg(feature = "etcd")]
        let connector = connector.with("etcd", etcd).with("etcds", etcd);
        #[cfg(feature = "local")]
        let connector = connector.with("local", local);
        connector
    }

    /// Also knows `scheme`; it replaces what was known under that name.
    #[must_use]
    pub fn with<F>(
        mut self,
        scheme: &str,
        open: impl Fn(Address, Options) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Backend>> + Send + 'static,
    {
        let open: Open = Arc::new(move |address, options| open(address, options).boxed());
        self.0.insert(scheme.to_owned(), open);
        self
    }

    /// The schemes that it knows, in order.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Connects to the store at `address`.
    ///
    /// # Errors
    ///
    /// `Invalid` for a scheme that nobody knows, or that is not compiled in (the message names the feature that brings it),
    /// and for an address that its backend does not understand; those of reaching the store, where the backend does so
    /// already now.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the store as it was.
    pub async fn connect(&self, address: &Address, options: Options) -> Result<Backend> {
        match self.0.get(&address.scheme) {
            Some(open) => open(address.clone(), options).await,
            None => Err(self.unknown(address)),
        }
    }

    fn unknown(&self, address: &Address) -> Error {
        let scheme = &address.scheme;
        if let Some((_, feature)) = FEATURES.iter().find(|(known, _)| known == scheme) {
            return invalid(format!(
                "this build has no backend for {scheme:?}; build it with the feature `{feature}`"
            ));
        }
        let here = self.schemes().collect::<Vec<_>>().join(", ");
        let mut more: Vec<_> = FEATURES.iter().map(|(_, feature)| *feature).collect();
        more.dedup();
        more.retain(|feature| !self.0.contains_key(*feature));
        let more = match &*more.join(", ") {
            "" => String::new(),
            more => format!("; others come with the features {more}"),
        };
        invalid(format!("no backend is called {scheme:?}; this build knows {here}{more}"))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.schemes().collect::<Vec<_>>()).finish()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: Namespace::default(),
            env: Env::system(),
            limits: Limits::default(),
            password: None,
        }
    }
}

async fn memory(address: Address, options: Options) -> Result<Backend> {
    if !address.rest.is_empty() {
        return Err(invalid(format!("{address}: nothing may follow `memory:`")));
    }
    let Options { namespace, env, limits, .. } = options;
    let store = Arc::new(Memory::new(env.clone(), Profile::Server));
    Ok(Backend::over("memory", store, namespace, env, limits))
}

#[cfg(feature = "couchdb")]
async fn couchdb(address: Address, options: Options) -> Result<Backend> {
    use servicekit_couch::{Config, Couch};

    let mut config = Config::parse(address.rest(), address.scheme() == "couchdbs")?;
    let create = config.create;
    let Options { namespace, env, limits, password } = options;
    if config.user.is_some() && config.password.is_none() {
        config.password = password.map(|password| password.0);
    }
    let couch = Couch::new(config, env.clone(), limits)?;
    if create {
        couch.make_databases().await?;
    }
    Ok(servicekit_couch::backend(couch, namespace, env, limits))
}

#[cfg(feature = "dynamodb")]
async fn dynamodb(address: Address, options: Options) -> Result<Backend> {
    use servicekit_dynamo::{Config, Dynamo};

    let config = Config::parse(address.rest())?;
    let create = config.create;
    let Options { namespace, env, limits, .. } = options;
    let dynamo = Dynamo::new(config, env.clone(), limits);
    if create {
        dynamo.make_table().await?;
    }
    Ok(servicekit_dynamo::backend(dynamo, namespace, env, limits))
}

#[cfg(feature = "etcd")]
async fn etcd(address: Address, options: Options) -> Result<Backend> {
    use servicekit_etcd::{Config, Etcd};

    let mut config = match (address.scheme(), address.rest()) {
        // Without a host: where `etcdctl` would look.
        ("etcd", "") => Config::from_variables(|name| std::env::var(name).ok()),
        (scheme, rest) => Config::parse(rest, scheme == "etcds"),
    }?;
    let Options { namespace, env, limits, password } = options;
    if config.user.is_some() && config.password.is_none() {
        config.password = password.map(|password| password.0);
    }
    let etcd = Etcd::new(config, env.clone(), limits)?;
    Ok(servicekit_etcd::backend(etcd, namespace, env, limits))
}

#[cfg(feature = "local")]
async fn local(address: Address, options: Options) -> Result<Backend> {
    let path = local_path(&address)?;
    let Options { namespace, env, limits, .. } = options;
    let local = servicekit_local::Local::open(&path, env.clone()).await?;
    Ok(servicekit_local::backend(local, namespace, env, limits))
}

/// A backend for each namespace that has a record in a store of this host.
#[cfg(feature = "local")]
pub(crate) async fn namespaces(store: &Path, env: &Env) -> Result<Vec<Backend>> {
    let local = servicekit_local::Local::open(store, env.clone()).await?;
    let namespaces = local.namespaces().await?.into_iter();
    let open = |namespace| {
        servicekit_local::backend(local.clone(), namespace, env.clone(), Limits::default())
    };
    Ok(namespaces.map(open).collect())
}

/// No store is a file of this host in this build.
#[cfg(not(feature = "local"))]
pub(crate) async fn namespaces(_: &Path, _: &Env) -> Result<Vec<Backend>> {
    Ok(Vec::new())
}

#[cfg(feature = "local")]
fn local_path(address: &Address) -> Result<PathBuf> {
    match address.rest.strip_prefix("//").unwrap_or(&address.rest) {
        "" if address.rest.is_empty() => servicekit_local::default_path(),
        path if path.starts_with('/') && !path.contains('?') => Ok(path.into()),
        _ => {
            let message =
                format!("{address}: expected `local:` and an absolute path, without parameters");
            Err(invalid(message))
        }
    }
}

impl Address {
    /// Who can reach the store at this address, when it is one that servicekit brings.
    ///
    /// # Errors
    ///
    /// `Invalid` when its backend does not understand it.
    pub fn reach(&self) -> Result<Reach> {
        match self.scheme() {
            "memory" => Ok(Reach::Process),
            #[cfg(feature = "local")]
            "local" => local_path(self).map(Reach::Host),
            _ => Ok(Reach::Shared),
        }
    }

    /// The scheme, without its colon.
    #[must_use]
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What follows the colon, with its password if there is one: for backends, not for messages.
    #[must_use]
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// The variables of the environment, besides servicekit's own, that have the password of this address.
    #[must_use]
    pub fn password_variables(&self) -> &'static [&'static str] {
        match (self.scheme(), self.rest()) {
            // Half of what belongs together would keep others from looking further.
            ("dynamodb", _) => &[
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                // What AWS's own chain takes where that is missing.
                "SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN",
            ],
            ("etcd", "") => &["ETCDCTL_USER", "ETCDCTL_PASSWORD"],
            _ => &[],
        }
    }

    /// Whether there is a password in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        hide_passwords(&self.rest) != self.rest
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let (scheme, rest) = url.split_once(':').unwrap_or((url, ""));
        let mut chars = scheme.chars();
        let fine = chars.next().is_some_and(|c| c.is_ascii_lowercase())
            && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c));
        if !fine {
            let shown = hide_passwords(url);
            let message =
                format!("{shown:?} is not the URL of a store, such as `local:/path/file.db`");
            return Err(invalid(message));
        }
        Ok(Self { scheme: scheme.into(), rest: rest.into() })
    }
}

impl Password {
    /// Keeps a password to itself.
    #[must_use]
    pub fn new(password: String) -> Self {
        Self(Zeroizing::new(password))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme, hide_passwords(&self.rest))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

const HIDDEN: &str = "***";

/// Hides what may be a password. A password need not be escaped correctly, so this rather hides too much.
fn hide_passwords(url: &str) -> String {
    let shown = hide_parameters(url);
    let user = shown.find("//").map_or(0, |slashes| slashes + 2);
    match (shown[user..].find(':'), shown.rfind('@')) {
        (Some(colon), Some(at)) if user + colon < at => {
            format!("{}:{HIDDEN}{}", &shown[..user + colon], &shown[at..])
        }
        _ => shown,
    }
}

/// Hides the values of parameters that are called a password, also where a question mark stands before the query.
fn hide_parameters(url: &str) -> String {
    let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
    let parameters = query.split('&').map(|parameter| match parameter.split_once('=') {
        Some((name, _)) if name.contains("password") && !name.ends_with("-file") => {
            format!("{name}={HIDDEN}")
        }
        _ => parameter.to_owned(),
    });
    format!("{place}?{}", parameters.collect::<Vec<_>>().join("&"))
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(url: &str) -> String {
        let error = connect(url).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{url}");
        error.to_string()
    }

    #[tokio::test]
    async fn a_scheme_that_is_not_compiled_in_names_its_feature() {
        let lacking: &[(&str, &str)] = &[
            #[cfg(not(feature = "etcd"))]
            ("etcd", "`etcd`"),
            #[cfg(not(feature = "etcd"))]
            ("etcds://host:2379/prefix", "`etcd`"),
            #[cfg(not(feature = "dynamodb"))]
            ("dynamodb://eu-central-1/table", "`dynamodb`"),
            #[cfg(not(feature = "couchdb"))]
            ("couchdbs://host/database", "`couchdb`"),
        ];
        for (url, feature) in lacking {
            assert!(refusal(url).await.contains(&format!("with the feature {feature}")), "{url}");
        }
        let unknown = refusal("zookeeper://host").await;
        assert!(unknown.contains("no backend is called \"zookeeper\""), "{unknown}");
        #[cfg(not(feature = "couchdb"))]
        assert!(unknown.contains("features couchdb"), "{unknown}");
    }

    #[tokio::test]
    async fn addresses_that_make_no_sense_are_refused() {
        for url in ["", " ", ":x", "/var/lib/x.db", "LOCAL:", "memory:x"] {
            refusal(url).await;
        }
    }

    #[cfg(feature = "local")]
    #[tokio::test]
    async fn local_takes_an_absolute_path_and_nothing_else() {
        for url in
            ["local:file.db", "local://host/file.db", "local:/file.db?create=true", "local://"]
        {
            assert!(refusal(url).await.contains("absolute path"), "{url}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        for url in [format!("local:{}", path.display()), format!("local://{}", path.display())] {
            assert_eq!(connect(&url).await.unwrap().name, "local");
        }
        assert!(path.exists());
    }

    #[cfg(feature = "dynamodb")]
    #[tokio::test]
    async fn dynamodb_is_connected_to_when_it_is_used() {
        for url in ["dynamodb", "dynamodb://eu-central-1/fleet", "dynamodb:///fleet?profile=ops"] {
            assert_eq!(connect(url).await.unwrap().name, "dynamodb", "{url}");
        }
        assert!(refusal("dynamodb://fleet").await.contains("names no table"));
        assert!(refusal("dynamodb://key:secret@eu-central-1/fleet").await.contains("AWS_PROFILE"));
    }

    #[cfg(feature = "etcd")]
    #[tokio::test]
    async fn etcd_is_connected_to_when_it_is_used() {
        for url in ["etcd", "etcd://127.0.0.1:1", "etcds://[::1]:1,other/team"] {
            assert_eq!(connect(url).await.unwrap().name, "etcd", "{url}");
        }
        for url in ["etcd:", "etcd:host", "etcd://", "etcds"] {
            // `etcd:` is the bare name, written with its colon.
            assert_eq!(connect(url).await.is_ok(), url == "etcd:", "{url}");
        }
        assert!(refusal("etcd://root@host").await.contains("SERVICEKIT_PASSWORD"));
        let options =
            Options { password: Some(Password::new("secret".into())), ..Options::default() };
        assert!(!format!("{options:?}").contains("secret"));
        let address = "etcd://root@host".parse().unwrap();
        assert!(Connector::builtin().connect(&address, options).await.is_ok());
    }

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            ("etcd://root:secret@host:2379/p", "etcd://root:***@host:2379/p"),
            ("etcd://root:se/cr@et@host", "etcd://root:***@host"),
            ("etcd://root:se?cret@host?ca=x", "etcd://root:***@host?ca=x"),
            ("etcd:root:secret@host", "etcd:root:***@host"),
            ("etcd://host:2379,other:2379/p", "etcd://host:2379,other:2379/p"),
            ("etcd://host/p?password=secret&ca=x", "etcd://host/p?password=***&ca=x"),
            ("etcd://host?password-file=/f", "etcd://host?password-file=/f"),
            ("etcd://root:se?cret@host/p?password=secret", "etcd://root:***@host/p?password=***"),
            ("couchdb://h/db?user=a@b&password=secret", "couchdb://h/db?user=a@b&password=***"),
            ("couchdb://user@host/db", "couchdb://user@host/db"),
            ("local:/var/lib/x.db", "local:/var/lib/x.db"),
        ] {
            let address: Address = url.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?}").contains("secret"));
            assert_eq!(address.has_password(), url != shown, "{url}");
        }
        let error = "Etcd://root:secret@host".parse::<Address>().unwrap_err();
        assert!(!format!("{error:?}").contains("secret"));
    }
}
