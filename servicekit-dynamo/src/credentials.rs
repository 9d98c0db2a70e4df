//! Who asks: what AWS's own chain of credentials says, kept until it ends by the store's clock.
//!
//! The SDK would keep it, too. But it never looks at a file again, so that who logs in again is not heard of; it ends the search
//! with the request that began it, so that a slow helper never comes to an end; it begins the next search when the last answer
//! has ended, so that a failure of that moment is one of the request; and it judges by the host's clock.

use std::{fmt, sync::Arc, time::Duration};

use aws_config::{
    Region, default_provider::credentials::DefaultCredentialsChain,
    profile::ProfileFileCredentialsProvider, provider_config::ProviderConfig,
};
use aws_credential_types::{
    Credentials,
    provider::{
        self, ProvideCredentials, SharedCredentialsProvider, error::CredentialsError, future,
    },
};
use aws_smithy_types::DateTime;
use servicekit_core::{
    Clock, Error, Instant, Kind, Random, Result, Retry,
    clock::{SystemClock, timeout},
    store::StoreClock,
};
use tokio::{sync::Mutex, task::JoinHandle};

use crate::error::{NO_CREDENTIALS, innermost};

/// How long before their end others are looked for.
const EARLY: Duration = Duration::from_secs(300);
/// How long a search may take: one that hangs would keep all others from beginning.
const SEARCH: Duration = Duration::from_secs(60);
/// How long the next search is put off after one that was in vain, while it is not needed at once; it doubles up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long before their end they are used no more.
const LATE: Duration = Duration::from_secs(10);

/// The credentials of one client. Clones share them.
#[derive(Clone)]
pub(crate) struct Keeper {
    chain: SharedCredentialsProvider,
    clock: StoreClock,
    longest: Duration,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    credentials: Option<Credentials>,
    /// The search that is on, whether or not somebody waits for it.
    search: Option<JoinHandle<provider::Result>>,
    /// Whether there ever were some: then there are none for now.
    ever: bool,
    /// Not before then, while a search finds nothing new: whoever gives them may be ill already.
    again: Option<Instant>,
    pause: Duration,
}

impl Kept {
    /// Puts the next search off, the longer the more often.
    fn put_off(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let pause = Random::system().jitter(self.pause, 0.5);
        self.again = Some(SystemClock.now() + pause);
    }

    fn is_put_off(&self) -> bool {
        self.again.is_some_and(|again| SystemClock.now() < again)
    }
}

impl Keeper {
    pub(crate) fn new(chain: SharedCredentialsProvider, clock: StoreClock) -> Self {
        Self { chain, clock, longest: SEARCH, kept: Arc::default() }
    }

    /// Waits until there are some, and returns them.
    ///
    /// # Errors
    ///
    /// `Denied` where there are none, and `Unavailable` where they cannot be had for now; nothing was sent to the store.
    pub(crate) async fn ready(&self, clock: &dyn Clock, patience: Duration) -> Result<Credentials> {
        match timeout(clock, patience, self.get()).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(explain(error, self.kept.lock().await.ever)),
            Err(_) => {
                let message = format!("the AWS credentials did not come within {patience:?}");
                Err(Error::new(Kind::Unavailable, message).retry_as(Retry::Safe))
            }
        }
    }

    /// Looks for others than these, which the store does not take any longer; whether there are some.
    pub(crate) async fn replace(
        &self,
        refused: &Credentials,
        clock: &dyn Clock,
        patience: Duration,
    ) -> bool {
        let mut kept = self.kept.lock().await;
        if kept.is_put_off() && kept.credentials.as_ref() == Some(refused) {
            return false;
        }
        // Somebody else may have found others meanwhile.
        if kept.credentials.as_ref() == Some(refused) {
            kept.credentials = None;
        }
        drop(kept);
        let are_others = self.ready(clock, patience).await.is_ok_and(|found| found != *refused);
        if !are_others {
            self.kept.lock().await.put_off();
        }
        are_others
    }

    async fn get(&self) -> provider::Result {
        let mut kept = self.kept.lock().await;
        let is_put_off = kept.is_put_off();
        let Kept { credentials, search, ever, .. } = &mut *kept;
        let fine = |least| credentials.as_ref().filter(|known| self.left(known) > least).cloned();
        if let Some(known) = fine(EARLY) {
            return Ok(known);
        }
        let usable = fine(LATE);
        if let Some(usable) = usable.as_ref().filter(|_| is_put_off && search.is_none()) {
            return Ok(usable.clone());
        }
        let task = search.get_or_insert_with(|| {
            let chain = self.chain.clone();
            let longest = self.longest;
            tokio::spawn(async move {
                let found = timeout(&SystemClock, longest, chain.provide_credentials()).await;
                found.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(longest)))
            })
        });
        if let Some(usable) = usable.as_ref().filter(|_| !task.is_finished()) {
            return Ok(usable.clone());
        }
        let found = task.await.unwrap_or_else(|error| Err(CredentialsError::unhandled(error)));
        let found = found.and_then(fit_for_a_header);
        *search = None;
        match (found, usable) {
            (Ok(found), _) => {
                *credentials = Some(found.clone());
                *ever = true;
                (kept.again, kept.pause) = (None, Duration::ZERO);
                Ok(found)
            }
            (Err(error), Some(usable)) => {
                tracing::debug!(%error, "there are no new credentials yet");
                kept.put_off();
                Ok(usable)
            }
            (Err(error), None) => Err(error),
        }
    }

    fn left(&self, credentials: &Credentials) -> Duration {
        let Some(expiry) = credentials.expiry() else { return Duration::MAX };
        let expiry = DateTime::from(expiry).to_millis().unwrap_or(i64::MAX);
        Duration::from_millis(
            u64::try_from(expiry.saturating_sub(self.clock.latest())).unwrap_or(0),
        )
    }
}

impl ProvideCredentials for Keeper {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.get())
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Looks anew each time: AWS's own chains read a file once.
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) region: Option<Region>,
    /// The profile that the address names, and then nothing else will do.
    pub(crate) profile: Option<String>,
}

impl Chain {
    async fn search(&self) -> provider::Result {
        let config = ProviderConfig::default().with_region(self.region.clone());
        match &self.profile {
            Some(profile) => {
                let chain = ProfileFileCredentialsProvider::builder().configure(&config);
                let found = chain.profile_name(profile).build().provide_credentials().await;
                found.map_err(|error| match error {
                    CredentialsError::CredentialsNotLoaded(_) => {
                        let message = format!("the profile {profile:?} is not there, or has none");
                        CredentialsError::not_loaded(message)
                    }
                    error => error,
                })
            }
            None => {
                let chain = DefaultCredentialsChain::builder().configure(config);
                chain.build().await.provide_credentials().await
            }
        }
    }
}

impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.search())
    }
}

/// The SDK panics when it has to send others: those of a file with the line ends of another system.
fn fit_for_a_header(found: Credentials) -> provider::Result {
    let is_fit = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let odd = if !is_fit(found.access_key_id()) {
        "the access key"
    } else if !found.session_token().is_none_or(is_fit) {
        "the session token"
    } else {
        return Ok(found);
    };
    let message =
        format!("{odd} has a space, a line end or another character that does not belong there");
    Err(CredentialsError::invalid_configuration(message))
}

/// There are none, which somebody has to mend; or those who give them are away.
fn explain(error: CredentialsError, ever: bool) -> Error {
    let (kind, retry, advice) = match &error {
        // The service that tells them to a machine says so, too, while it cannot be reached.
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)
            if !ever =>
        {
            (Kind::Denied, Retry::Never, NO_CREDENTIALS)
        }
        _ => (Kind::Unavailable, Retry::Safe, "the AWS credentials cannot be had for now"),
    };
    let message = format!("{advice}{}", innermost(&error));
    Error::new(kind, message).retry_as(retry).because(error)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::SystemTime,
    };

    use servicekit_core::Env;

    use super::*;

    /// Fails, then gives what ends after so many seconds each, after so long.
    #[derive(Debug)]
    struct Script {
        lives: &'static [Option<u64>],
        asked: Arc<AtomicUsize>,
        slow: Duration,
    }

    impl ProvideCredentials for Script {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let life = self.lives.get(self.asked.fetch_add(1, Ordering::Relaxed)).copied();
            future::ProvideCredentials::new(async move {
                Env::system().clock.sleep(self.slow).await;
                let Some(Some(seconds)) = life else {
                    return Err(CredentialsError::provider_error("STS says 503"));
                };
                let expiry = now() + Duration::from_secs(seconds);
                Ok(Credentials::new("id", "hush", None, Some(expiry), "tests"))
            })
        }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(Env::system().clock.wall().as_millis())
    }

    fn keeper(lives: &'static [Option<u64>], slow: Duration) -> (Keeper, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let chain = SharedCredentialsProvider::new(Script { lives, asked: asked.clone(), slow });
        (Keeper::new(chain, StoreClock::new(Env::system().clock)), asked)
    }

    async fn ready(keeper: &Keeper, patience: Duration) -> Result<Credentials> {
        keeper.ready(&*Env::system().clock, patience).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_failure_of_the_moment_is_no_denial_and_those_at_hand_are_used_meanwhile() {
        let (keeper, asked) = keeper(&[None, Some(60), None, Some(3600)], Duration::ZERO);
        let error = ready(&keeper, LONG).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Safe), "{error:?}");
        assert!(error.to_string().contains("503"), "{error}");
        // These end soon: others are looked for, and a failure of that is nobody's.
        while asked.load(Ordering::Relaxed) < 4 {
            ready(&keeper, LONG).await.unwrap();
            tokio::task::yield_now().await;
        }
        while keeper.left(&keeper.get().await.unwrap()) < EARLY {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn searches_that_find_nothing_are_put_off() {
        // They end soon, and there are no others.
        let (keeper, asked) = keeper(&[Some(200)], Duration::ZERO);
        let first = ready(&keeper, LONG).await.unwrap();
        while asked.load(Ordering::Relaxed) < 2 {
            ready(&keeper, LONG).await.unwrap();
            tokio::task::yield_now().await;
        }
        while keeper.kept.lock().await.again.is_none() {
            ready(&keeper, LONG).await.unwrap();
            tokio::task::yield_now().await;
        }
        keeper.kept.lock().await.pause = LONGEST_PAUSE;
        keeper.kept.lock().await.put_off();
        for _ in 0..100 {
            ready(&keeper, LONG).await.unwrap();
            assert!(!keeper.replace(&first, &*Env::system().clock, LONG).await);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_slow_search_outlives_who_began_it() {
        let (keeper, asked) = keeper(&[Some(3600)], Duration::from_millis(300));
        let error = ready(&keeper, Duration::from_millis(10)).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Safe), "{error:?}");
        ready(&keeper, LONG).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_search_that_hangs_is_given_up_and_begun_anew() {
        let (mut keeper, asked) = keeper(&[Some(3600)], LONG * 100);
        keeper.longest = Duration::from_millis(10);
        for searches in 1..=2 {
            let error = ready(&keeper, LONG).await.unwrap_err();
            let found = (error.kind(), error.retry());
            assert_eq!(found, (Kind::Unavailable, Retry::Safe), "{error:?}");
            assert_eq!(asked.load(Ordering::Relaxed), searches);
        }
    }

    #[tokio::test]
    async fn those_that_the_store_refuses_are_replaced_once_for_all_who_have_them() {
        let (keeper, asked) = keeper(&[Some(3600), Some(7200)], Duration::ZERO);
        let clock = Env::system().clock;
        let refused = ready(&keeper, LONG).await.unwrap();
        for _ in 0..3 {
            assert!(keeper.replace(&refused, &*clock, LONG).await);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        // That there are none now is of the moment.
        let refused = ready(&keeper, LONG).await.unwrap();
        assert!(!keeper.replace(&refused, &*clock, LONG).await);
        let error = explain(CredentialsError::not_loaded("IMDS is away"), true);
        assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Safe), "{error:?}");
    }

    #[tokio::test]
    async fn their_end_is_judged_by_the_clock_of_the_store() {
        let (keeper, asked) = keeper(&[Some(3600), Some(3600 * 5)], Duration::ZERO);
        ready(&keeper, LONG).await.unwrap();
        // The host is two hours behind.
        let at = Env::system().clock.now();
        let told = i64::try_from(Env::system().clock.wall().as_millis()).unwrap() + 7_200_000;
        keeper.clock.learn(told, at, at);
        ready(&keeper, LONG).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        let refused = ready(&keeper, LONG).await.unwrap();
        assert!(!keeper.replace(&refused, &*Env::system().clock, LONG).await);
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_no_header_can_hold_is_named_and_not_shown() {
        for (id, token, says) in
            [("id\r", None, "the access key"), ("id", Some("hush\n"), "the session token")]
        {
            let odd = Credentials::new(id, "hush", token.map(String::from), None, "tests");
            let error = explain(fit_for_a_header(odd).unwrap_err(), false);
            assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
            assert!(error.message().contains(says), "{error:?}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }
}
