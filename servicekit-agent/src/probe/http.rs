use std::{
    collections::BTreeMap, error::Error as _, fmt, fs, path::PathBuf, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use reqwest::{
    Certificate, Client, Request, Response, StatusCode, Url,
    header::{HeaderName, HeaderValue, LOCATION, USER_AGENT},
    redirect::Policy,
};
use servicekit_core::{
    Clock, Error, Kind, Result,
    clock::timeout,
    health::{Probe, Verdict},
};

use super::{MOST_BYTES, Statuses, first_line};

/// Gets a URL over a new connection, and passes when the status is one of those expected and the body arrives whole.
///
/// - The time-out covers everything: the look-up of the name, the connection, TLS, headers and body.
/// - Redirects are not followed; the verdict says where to.
/// - The body is read up to [`MOST_BYTES`] and let go. A body that is larger, drips beyond the time-out or is cut short
///   fails the probe, whatever the status was.
/// - No proxy of the environment is used, and nothing is decompressed.
/// - Every probe opens a connection of its own, because that is what clients of a service that has just lost its accept
///   loop would do; and a connection kept between two probes might be the one that the service is just closing.
pub struct Http {
    request: Request,
    /// The URL without what may be secret in it.
    shown: String,
    timeout: Duration,
    expect: Statuses,
    client: Client,
    clock: Arc<dyn Clock>,
}

/// What an [`Http`] probe asks, and what it expects.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct HttpOptions {
    /// What to get: `http:` or `https:`. A user and a password in it are sent as basic authentication.
    pub url: String,
    /// The longest that all of it may take.
    pub timeout: Duration,
    /// The statuses that pass.
    pub expect: Statuses,
    /// Headers to send, by name and value.
    pub headers: Vec<(String, String)>,
    /// A PEM file with the only authorities to trust; those of the system when there is none.
    pub ca: Option<PathBuf>,
    /// Whether to accept any certificate.
    pub insecure: bool,
}

impl HttpOptions {
    /// Gets `url` within 2 seconds and expects 200 to 299.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            timeout: Duration::from_secs(2),
            expect: Statuses::default(),
            headers: Vec::new(),
            ca: None,
            insecure: false,
        }
    }
}

/// The clients of HTTP probes, one for all that trust the same: the authorities of a system are half a megabyte.
#[derive(Debug, Default)]
pub struct Clients(BTreeMap<Trust, Client>);

/// Whose certificates are accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    System,
    Only(PathBuf),
    Anybody,
}

impl Http {
    /// A probe that takes its client from `clients`, or adds it there.
    ///
    /// # Errors
    ///
    /// `Invalid` for a URL, a header or a CA file that cannot be used; the message names it.
    pub fn new(options: HttpOptions, clients: &mut Clients, clock: Arc<dyn Clock>) -> Result<Self> {
        let HttpOptions { url, timeout, expect, headers, ca, insecure } = options;
        let url = parse(&url)?;
        let trust = match (url.scheme(), ca, insecure) {
            // Without redirects there is no way from here to TLS, and no need to load the system's authorities.
            ("http", None, _) => Trust::Anybody,
            (_, None, false) => Trust::System,
            (_, None, true) => Trust::Anybody,
            (_, Some(ca), false) => Trust::Only(ca),
            (_, Some(_), true) => {
                let message = "a CA file and accepting any certificate contradict each other";
                return Err(Error::new(Kind::Invalid, message));
            }
        };
        let client = clients.get(trust)?;
        let shown = shown(&url);
        let unusable = |error| Error::new(Kind::Invalid, cause(&error));
        let mut request = client.get(url).build().map_err(unusable)?;
        for (name, value) in headers {
            let (name, value) = header(&name, &value)?;
            request.headers_mut().append(name, value);
        }
        let agent = HeaderValue::from_static(concat!("servicekit/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(USER_AGENT).or_insert(agent);
        Ok(Self { request, shown, timeout, expect, client, clock })
    }

    /// The whole exchange; `status` is set once it is known, so that a time-out can tell what was missing.
    async fn exchange(&self, status: &mut Option<StatusCode>) -> Result<String, String> {
        let request = self.request.try_clone().ok_or("the request cannot be sent twice")?;
        let response = self.client.execute(request).await.map_err(|error| cause(&error))?;
        let code = response.status();
        *status = Some(code);
        if self.expect.contains(code.as_u16()) {
            read_whole(response).await.map_err(|problem| format!("{code}, but {problem}"))?;
            return Ok(code.to_string());
        }
        if code.is_redirection()
            && let Some(to) = response.headers().get(LOCATION)
        {
            let to = first_line(to.as_bytes());
            return Err(format!("{code} to {to}; redirects are not followed"));
        }
        let said = read_line(response).await;
        let colon = if said.is_empty() { "" } else { ": " };
        Err(format!("{code}{colon}{said}"))
    }
}

#[async_trait]
impl Probe for Http {
    async fn check(&self) -> Verdict {
        let mut status = None;
        let answer = timeout(&*self.clock, self.timeout, self.exchange(&mut status)).await;
        let limit = self.timeout;
        let problem = match answer {
            Ok(Ok(said)) => return Verdict::Pass(format!("GET {}: {said}", self.shown)),
            Ok(Err(problem)) => problem,
            Err(_) => status.map_or_else(
                || format!("no answer within {limit:?}"),
                |code| format!("{code}, but the body did not end within {limit:?}"),
            ),
        };
        Verdict::Fail(format!("GET {}: {problem}", self.shown))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("url", &self.shown).finish_non_exhaustive()
    }
}

impl Clients {
    fn get(&mut self, trust: Trust) -> Result<Client> {
        if let Some(client) = self.0.get(&trust) {
            return Ok(client.clone());
        }
        let builder = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            // Compiled out here, and switched off in case another crate of the program switched it on.
            .no_gzip()
            .no_deflate()
            .no_brotli()
            .no_zstd()
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0);
        let builder = match &trust {
            Trust::System => builder,
            Trust::Only(path) => builder.tls_certs_only(authorities(path)?),
            Trust::Anybody => builder.tls_certs_only([]).tls_danger_accept_invalid_certs(true),
        };
        let client = builder.build().map_err(|error| {
            Error::new(Kind::Invalid, format!("TLS cannot be set up: {}", cause(&error)))
        })?;
        self.0.insert(trust, client.clone());
        Ok(client)
    }
}

fn parse(text: &str) -> Result<Url> {
    // Not the text itself: it may hold a password.
    let invalid =
        |problem: String| Error::new(Kind::Invalid, format!("the URL to probe {problem}"));
    let url = Url::parse(text).map_err(|error| invalid(format!("is no URL: {error}")))?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(invalid(format!("begins with {other}:, but must with http: or https:"))),
    }
}

fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Neither can fail where there is a host, and http and https have one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let invalid = |what: &str| {
        Error::new(Kind::Invalid, format!("header {name:?}: its {what} has a forbidden character"))
    };
    let parsed = name.parse::<HeaderName>().map_err(|_| invalid("name"))?;
    let mut value = value.parse::<HeaderValue>().map_err(|_| invalid("value"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}

fn authorities(path: &PathBuf) -> Result<Vec<Certificate>> {
    let invalid = |problem: String| {
        Error::new(Kind::Invalid, format!("CA file {}: {problem}", path.display()))
    };
    let pem = fs::read(path).map_err(|error| invalid(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(cause(&error)))?;
    if found.is_empty() {
        return Err(invalid("no certificate in it".into()));
    }
    Ok(found)
}

/// Reads and drops a body, as long as it is not too large.
async fn read_whole(mut response: Response) -> Result<(), String> {
    let too_large = || format!("the body is larger than {} KiB", MOST_BYTES >> 10);
    if response.content_length().is_some_and(|length| length > MOST_BYTES as u64) {
        return Err(too_large());
    }
    let mut read = 0;
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            Ok(None) => return Ok(()),
            Err(error) => return Err(format!("the body was cut short: {}", cause(&error))),
        }
        if read > MOST_BYTES {
            return Err(too_large());
        }
    }
}

/// What the body of a failure begins with; nothing where it does not come.
async fn read_line(mut response: Response) -> String {
    match response.chunk().await {
        Ok(Some(chunk)) => first_line(&chunk),
        Ok(None) | Err(_) => String::new(),
    }
}

/// The innermost cause: the outer ones say no more than that a request failed.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost = error.source();
    while let Some(source) = innermost.and_then(|error| error.source()) {
        innermost = Some(source);
    }
    let text = innermost.map_or_else(|| error.to_string(), ToString::to_string);
    first_line(text.as_bytes())
}
