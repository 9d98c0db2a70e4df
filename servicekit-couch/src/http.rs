//! The thin layer on HTTP: who asks, how long an answer may take, and what time it shows.
//!
//! It is not `couch_rs`: that makes its HTTP client itself, and nobody can give it another. So there is no CA of one's own and
//! no client's certificate; its login is a password with every request, and no session; it takes proxies from the environment,
//! compresses, which holds back the lines of a feed, and follows redirects. Its documents and queries make one success of 201
//! and 202, and status 501 of a connection that failed, so that nobody can tell what may be sent again. What would be left of it
//! is the making of a request.

use std::{
    fmt, fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::{
    Certificate, Client, Identity, Method, RequestBuilder, Response,
    header::{CONTENT_TYPE, COOKIE, DATE, HeaderValue, SET_COOKIE},
    redirect::Policy,
};
use serde::Deserialize;
use servicekit_core::{
    Clock, Effect, Env, Error, Instant, Kind, Result,
    address::refuse_exposed,
    store::{Limits, StoreClock},
};
use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};
use zeroize::Zeroizing;

use crate::{
    config::Config,
    error::{explain, from_answer},
};

/// More than this is no answer: the largest is a page of records.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// For so long a password that was refused is not sent again: CouchDB locks a user out for five minutes who sends five.
const NOT_AGAIN: Duration = Duration::from_secs(120);

/// One server, and the session with it.
pub(crate) struct Http {
    client: Client,
    base: String,
    config: Config,
    host: Arc<dyn Clock>,
    /// The store's time.
    pub(crate) clock: StoreClock,
    /// How long an answer may take; less than the wrapper gives an attempt, so that the answer tells why.
    pub(crate) patience: Duration,
    /// What the server calls the session of our user.
    session: Mutex<Option<HeaderValue>>,
    /// Held while logging in, so that a crowd of requests does so once; when and why the last login was refused.
    login: tokio::sync::Mutex<Option<(Instant, Error)>>,
}

/// An answer that was read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    reason: String,
}

impl Http {
    /// Prepares to ask; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// `Invalid` for a file that does not hold what it should, `Secret` for a key that others may read.
    pub(crate) fn new(config: Config, env: &Env, limits: Limits) -> Result<Self> {
        let patience = limits.attempt.mul_f64(0.8);
        let builder = Client::builder()
            .connect_timeout(patience)
            .redirect(Policy::none())
            .no_proxy()
            // Behind a proxy HTTP/2 would carry feeds without end and renewals on one connection: it has room for so many, and a
            // connection that is open at one end alone would hold up every attempt.
            .http1_only()
            // Switched off in case another crate of the program switched it on: it holds back the lines of a feed.
            .no_gzip()
            .no_deflate()
            .no_brotli()
            .no_zstd()
            // Core's wrapper sends again what may be sent again.
            .retry(reqwest::retry::never());
        let builder = match &config.ca {
            Some(path) => builder.tls_certs_only(authorities(path)?),
            None => builder,
        };
        let builder = match &config.client {
            Some((cert, key)) => builder.identity(identity(cert, key)?),
            None => builder,
        };
        let client = builder.build().map_err(|error| {
            let of_the_client = match &config.client {
                Some((cert, key)) => format!(
                    "; do the certificate {} and the key {} belong together?",
                    cert.display(),
                    key.display()
                ),
                None => String::new(),
            };
            invalid(format!("TLS cannot be set up{of_the_client}")).because(error)
        })?;
        let scheme = if config.encrypted { "https" } else { "http" };
        Ok(Self {
            client,
            base: format!("{scheme}://{}", config.endpoint),
            config,
            host: env.clock.clone(),
            clock: StoreClock::new(env.clock.clone()),
            patience,
            session: Mutex::default(),
            login: tokio::sync::Mutex::default(),
        })
    }

    /// Sends one request, and reads its answer if that is a success, which is 200 or 201 and never 202.
    pub(crate) async fn ask(
        &self,
        effect: Effect,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let response = self.send(effect, method, path, body, Some(self.patience)).await?;
        self.whole(effect, response).await
    }

    /// Begins to read an answer that does not end by itself.
    pub(crate) async fn stream(&self, path: &str, body: Vec<u8>) -> Result<Response> {
        let response = self.send(Effect::Nothing, Method::POST, path, Some(body), None).await?;
        if response.status().as_u16() == 200 {
            return Ok(response);
        }
        let odd = || Error::new(Kind::Unexpected, "the answer makes no sense");
        self.whole(Effect::Nothing, response).await.and_then(|_| Err(odd()))
    }

    async fn send(
        &self,
        effect: Effect,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Option<Duration>,
    ) -> Result<Response> {
        let url = format!("{}/{path}", self.base);
        let mut again = false;
        loop {
            let session = self.session().await?;
            let mut request = self.client.request(method.clone(), &url);
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            if let Some(session) = &session {
                request = request.header(COOKIE, session);
            }
            if let Some(body) = &body {
                request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
            }
            let response = self.receive(effect, request).await?;
            // A session ends by itself; who was just let in and is refused has a reason to be. What is of the server, and not of a
            // database, is refused to all but administrators.
            let is_of_the_server = path.starts_with('_');
            if response.status().as_u16() != 401 || session.is_none() || again || is_of_the_server {
                return Ok(response);
            }
            again = true;
            let mut known = self.known();
            if *known == session {
                *known = None;
            }
        }
    }

    async fn receive(&self, effect: Effect, request: RequestBuilder) -> Result<Response> {
        let sent = self.host.now();
        let answer = request.send().await;
        let response = answer.map_err(|error| explain(error, effect, self.patience))?;
        // A proxy that has no server to ask tells a time of its own.
        let is_couchdbs = response.status().as_u16() < 500;
        if let Some(date) = response.headers().get(DATE).filter(|_| is_couchdbs).and_then(date) {
            self.clock.learn(date, sent, self.host.now());
        }
        // CouchDB prolongs a session before it ends.
        if let Some(session) = response.headers().get_all(SET_COOKIE).iter().find_map(session_of) {
            *self.known() = Some(session);
        }
        Ok(response)
    }

    async fn whole(&self, effect: Effect, mut response: Response) -> Result<Answer> {
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| explain(error, effect, self.patience))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER_BYTES {
                return Err(Error::new(Kind::Unexpected, "the answer is too large"));
            }
        }
        if matches!(status, 200 | 201) {
            return Ok(Answer { status, body });
        }
        let said = serde_json::from_slice(&body);
        let said = said.unwrap_or(Refusal { error: String::new(), reason: String::new() });
        Err(from_answer(status, &shown(said.error), &shown(said.reason), effect))
    }

    /// What tells the server who asks; none where the address names nobody.
    async fn session(&self) -> Result<Option<HeaderValue>> {
        let (Some(user), Some(password)) = (&self.config.user, &self.config.password) else {
            return match &self.config.user {
                Some(user) => {
                    let message = format!(
                        "the user {user:?} needs a password: set SERVICEKIT_PASSWORD, or name a file with ?password-file="
                    );
                    Err(Error::new(Kind::Invalid, message))
                }
                None => Ok(None),
            };
        };
        let known = self.known().clone();
        if known.is_some() {
            return Ok(known);
        }
        let mut refused = self.login.lock().await;
        let known = self.known().clone();
        if known.is_some() {
            return Ok(known);
        }
        if let Some((since, error)) = &*refused
            && self.host.now() < *since + NOT_AGAIN
        {
            let again = Error::new(error.kind(), error.message());
            return Err(again.retry_as(error.retry()));
        }
        let body = serde_json::json!({ "name": user, "password": password.as_str() });
        let request = self.client.post(format!("{}/_session", self.base)).timeout(self.patience);
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        let response = self.receive(Effect::Nothing, request).await?;
        match self.whole(Effect::Nothing, response).await {
            Err(error) if error.kind() == Kind::Denied => {
                let told = Error::new(error.kind(), error.message()).retry_as(error.retry());
                *refused = Some((self.host.now(), told));
                return Err(error);
            }
            answer => drop(answer?),
        }
        *refused = None;
        let message = "CouchDB took the password and began no session";
        let session = self.known().clone();
        session.map(Some).ok_or_else(|| Error::new(Kind::Unexpected, message))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answer {
    /// What it says; `Unexpected` where it is not what was asked for.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let message = format!("the answer (HTTP {}) is not one of CouchDB's", self.status);
            Error::new(Kind::Unexpected, message).because(error)
        })
    }
}

/// The session, as it is sent back.
fn session_of(header: &HeaderValue) -> Option<HeaderValue> {
    let text = header.to_str().ok()?.split(';').next()?;
    let token = text.strip_prefix("AuthSession=")?;
    let mut value = HeaderValue::from_str(text).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

/// Milliseconds since 1970.
fn date(header: &HeaderValue) -> Option<i64> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let date = PrimitiveDateTime::parse(header.to_str().ok()?, format).ok()?;
    let seconds = OffsetDateTime::unix_timestamp(date.assume_utc());
    seconds.checked_mul(1000)
}

/// What a server says is shown to people: no more of it than fits on a line.
fn shown(text: String) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(200).map(clean).collect()
}

fn authorities(path: &Path) -> Result<Vec<Certificate>> {
    certificates("CA file", path, &read("CA file", path)?)
}

/// What the client shows of itself.
fn identity(cert: &Path, key: &Path) -> Result<Identity> {
    refuse_exposed("client's key", key, 0o007).map_err(|error| error.on("couchdb"))?;
    let mut pem = read("client certificate", cert)?;
    certificates("client certificate", cert, &pem)?;
    pem.push(b'\n');
    pem.extend_from_slice(&read("client's key", key)?);
    // The certificates were looked at.
    Identity::from_pem(&pem)
        .map_err(|_| invalid(format!("there is no private key (PEM) in {}", key.display())))
}

fn certificates(what: &str, path: &Path, pem: &[u8]) -> Result<Vec<Certificate>> {
    match Certificate::from_pem_bundle(pem) {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => {
            Err(invalid(format!("there is no certificate (PEM) in the {what} {}", path.display())))
        }
    }
}

fn read(what: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    fs::read(path).map(Zeroizing::new).map_err(|error| {
        invalid(format!("cannot read the {what} {}", path.display())).because(error)
    })
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message).on("couchdb")
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_read_to_the_second() {
        let read = |text: &'static str| date(&HeaderValue::from_static(text));
        assert_eq!(read("Thu, 01 Jan 1970 00:01:00 GMT"), Some(60_000));
        assert_eq!(read("Sat, 21 Nov 2026 12:10:02 GMT"), Some(1_795_263_002_000));
        assert_eq!(read("yesterday"), None);
    }

    #[test]
    fn a_session_is_what_comes_before_its_attributes() {
        let read = |text: &'static str| session_of(&HeaderValue::from_static(text));
        let session = read("AuthSession=abc; Version=1; Path=/; HttpOnly").unwrap();
        assert_eq!(session, "AuthSession=abc");
        assert!(!format!("{session:?}").contains("abc"));
        assert_eq!(read("AuthSession=; Version=1"), None);
        assert_eq!(read("Other=1"), None);
    }
}
