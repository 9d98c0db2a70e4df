//! The one table: the client that reaches it, and the look at its shape before it is first used.

use std::{fmt, future::Future, time::Duration};

use aws_config::{BehaviorVersion, Region};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_dynamodb::{
    Client,
    config::{
        Builder, IdentityCache, http::HttpResponse, retry::RetryConfig, timeout::TimeoutConfig,
    },
    error::{ProvideErrorMetadata, SdkError},
    types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
        TableDescription, TableStatus, TimeToLiveSpecification,
    },
};
use servicekit_core::{
    Effect, Env, Error, Kind, Result, Retry,
    store::{Limits, StoreClock},
};
use tokio::sync::OnceCell;

use crate::{
    config::Config,
    credentials::{Chain, Keeper},
    error::{EXPIRED, explain, is_missing_table},
    records::{EXPIRES, GROUP, NAME},
    time::Listener,
};

/// The connection to one table; it is made, and the table looked at, when it is first used.
pub(crate) struct Table {
    pub(crate) config: Config,
    pub(crate) clock: StoreClock,
    env: Env,
    /// How long an answer may take; less than the wrapper gives an attempt, so that the answer tells why.
    patience: Duration,
    limits: Limits,
    connection: OnceCell<Connection>,
    seen: OnceCell<Seen>,
}

struct Connection {
    client: Client,
    /// None where nothing says where to look for them.
    credentials: Option<Keeper>,
}

enum Look {
    /// It can be used.
    Fit(Seen),
    /// Soon it can, or is no more: what happens to it.
    UnderWay(&'static str),
}

/// What a look at the table told.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Why leases and certificates must not be written, on a table with replicas in several Regions.
    pub(crate) refused: Option<String>,
}

/// The other Regions of a table.
pub(crate) enum Replicas {
    None,
    /// Leases and certificates are written in this Region alone.
    Here,
    /// They must not be written here, and why.
    Elsewhere(String),
}

/// How often a table that is being made is looked at.
const LOOK: Duration = Duration::from_millis(500);

impl Table {
    pub(crate) fn new(config: Config, env: Env, limits: Limits) -> Self {
        let clock = StoreClock::new(env.clock.clone());
        let patience = limits.attempt.mul_f64(0.8);
        let (connection, seen) = Default::default();
        Self { config, clock, env, patience, limits, connection, seen }
    }

    /// The client, for a table that was found to be fit for use.
    ///
    /// The look also tells the store's time, before anything is written in terms of it.
    pub(crate) async fn open(&self) -> Result<(&Client, &Seen)> {
        let client = self.client().await;
        let look = async || match Box::pin(self.look(client)).await? {
            Look::Fit(seen) => Ok(seen),
            Look::UnderWay(what) => Err(under_way(what)),
        };
        Ok((client, self.seen.get_or_try_init(look).await?))
    }

    pub(crate) async fn client(&self) -> &Client {
        &self.connection().await.client
    }

    async fn connection(&self) -> &Connection {
        self.connection.get_or_init(|| Box::pin(self.connect())).await
    }

    /// Sends one request.
    pub(crate) async fn ask<T, E>(
        &self,
        effect: Effect,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send,
    ) -> Result<T>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (clock, keeper) = (&*self.env.clock, &self.connection().await.credentials);
        let used = match keeper {
            Some(keeper) => Some((keeper, keeper.ready(clock, self.patience).await?)),
            None => None,
        };
        // The futures of the SDK are large.
        let error = match Box::pin(request).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if let Some((keeper, refused)) = used
            && error.code().is_some_and(|code| EXPIRED.contains(&code))
            && keeper.replace(&refused, clock, self.patience).await
        {
            return Err(explain(error, effect, self.patience).retry_as(Retry::Safe));
        }
        let error = explain(error, effect, self.patience);
        Err(if is_missing_table(&error) { self.placed(error) } else { error })
    }

    /// Names the table and the Region, which may be those of somebody's profile.
    fn placed(&self, error: Error) -> Error {
        let region =
            self.connection.get().and_then(|connection| connection.client.config().region());
        let region = region.map_or("?", Region::as_ref);
        let message = format!(
            "{}: the table {:?}, in the Region {region:?}",
            error.message(),
            self.config.table
        );
        Error::new(error.kind(), message).retry_as(error.retry()).because(error)
    }

    /// What the table is like now.
    pub(crate) async fn describe(&self) -> Result<TableDescription> {
        let client = self.client().await;
        let look = || client.describe_table().table_name(&self.config.table).send();
        let answer = match self.ask(Effect::Nothing, look()).await {
            // The first request of a host whose clock is wrong, which is known by now.
            Err(error) if error.kind() == Kind::Denied && error.retry() == Retry::Safe => {
                self.ask(Effect::Nothing, look()).await?
            }
            answer => answer?,
        };
        let odd = || Error::new(Kind::Unexpected, "the answer describes no table");
        answer.table.ok_or_else(odd)
    }

    /// What its replicas mean for leases: between Regions the last writer wins, and two would each grant the same one.
    pub(crate) async fn replicas(&self, table: &TableDescription) -> Replicas {
        let regions: Vec<_> = table.replicas().iter().filter_map(|r| r.region_name()).collect();
        if regions.is_empty() {
            return Replicas::None;
        }
        let here = self.client().await.config().region().map_or("", Region::as_ref);
        match &self.config.leases_region {
            Some(named) if named == here => Replicas::Here,
            Some(named) => Replicas::Elsewhere(format!(
                "leases and certificates of this table are written in {named} alone; this is {here}"
            )),
            None => Replicas::Elsewhere(format!(
                "the table has replicas ({}), and the last writer wins between Regions: name the one Region that may \
                 write leases and certificates, in every address, with &leases-region=",
                regions.join(", ")
            )),
        }
    }

    /// Makes the table if it is missing and wanted, and waits for most of an operation's time until it can be used.
    ///
    /// # Errors
    ///
    /// Those of making it. That the store cannot be reached is found out by whoever uses it.
    pub(crate) async fn make(&self) -> Result<()> {
        let clock = &*self.env.clock;
        let deadline = clock.now() + self.limits.total.mul_f64(0.8);
        loop {
            match Box::pin(self.look(self.client().await)).await {
                Ok(Look::Fit(seen)) => {
                    self.seen.get_or_init(async || seen).await;
                    return Ok(());
                }
                Ok(Look::UnderWay(_)) if clock.now() + LOOK < deadline => clock.sleep(LOOK).await,
                Ok(Look::UnderWay(what)) => return Err(under_way(what)),
                Err(error) if error.is_transient() && !is_missing_table(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn connect(&self) -> Connection {
        let Config { region, endpoint, profile, sdk, .. } = &self.config;
        let shared = if let Some(sdk) = sdk {
            sdk.clone()
        } else {
            let mut loader = aws_config::defaults(BehaviorVersion::latest()).no_credentials();
            // So that nobody else is asked for it.
            if let Some(region) = region {
                loader = loader.region(Region::new(region.clone()));
            }
            if let Some(profile) = profile {
                loader = loader.profile_name(profile);
            }
            Box::pin(loader.load()).await
        };
        let timeouts = TimeoutConfig::builder()
            // Who cannot be reached is told from who does not answer: to the first nothing was sent.
            .connect_timeout(self.patience.mul_f64(0.75))
            .operation_timeout(self.patience);
        let mut config = Builder::from(&shared)
            .timeout_config(timeouts.build())
            // Core's wrapper sends again what may be sent again, knows how long it may take, and settles what is unknown. Two
            // that repeat would multiply a crowd's load on a table that is throttled already.
            .retry_config(RetryConfig::disabled())
            .interceptor(Listener { host: self.env.clock.clone(), store: self.clock.clone() });
        if let Some(region) = region {
            config = config.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = endpoint {
            config = config.endpoint_url(endpoint);
        }
        let chain = match sdk {
            Some(sdk) => sdk.credentials_provider(),
            None => {
                let chain = Chain { region: shared.region().cloned(), profile: profile.clone() };
                Some(SharedCredentialsProvider::new(chain))
            }
        };
        let credentials = chain.map(|chain| Keeper::new(chain, self.clock.clone()));
        if let Some(credentials) = &credentials {
            config = config
                .credentials_provider(credentials.clone())
                .identity_cache(IdentityCache::no_cache());
        }
        Connection { client: Client::from_conf(config.build()), credentials }
    }

    async fn look(&self, client: &Client) -> Result<Look> {
        let table = match self.describe().await {
            Err(error) if self.config.create && is_missing_table(&error) => {
                self.create(client).await?;
                return Ok(Look::UnderWay("the table is being made"));
            }
            described => described?,
        };
        match table.table_status() {
            Some(TableStatus::Creating) => return Ok(Look::UnderWay("the table is being made")),
            Some(TableStatus::Deleting) => return Ok(Look::UnderWay("the table is being deleted")),
            _ => {}
        }
        if let Some(difference) = difference(&table) {
            let message = format!(
                "the table {:?} has another shape: {difference}; name another one, and create=true makes it",
                self.config.table
            );
            return Err(Error::new(Kind::Unsupported, message));
        }
        if self.config.create {
            self.switch_expiry_on(client).await;
        }
        let refused = match self.replicas(&table).await {
            Replicas::None | Replicas::Here => None,
            Replicas::Elsewhere(why) => Some(why),
        };
        Ok(Look::Fit(Seen { refused }))
    }

    async fn create(&self, client: &Client) -> Result<()> {
        let odd = |error| Error::new(Kind::Unexpected, "no table can be described").because(error);
        let mut create = client
            .create_table()
            .table_name(&self.config.table)
            .billing_mode(BillingMode::PayPerRequest);
        for (name, key_type) in KEYS {
            let attribute = AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(ScalarAttributeType::S);
            let key = KeySchemaElement::builder().attribute_name(name).key_type(key_type);
            create = create
                .attribute_definitions(attribute.build().map_err(odd)?)
                .key_schema(key.build().map_err(odd)?);
        }
        match self.ask(Effect::Nothing, create.send()).await {
            Ok(_) => {
                tracing::info!(table = self.config.table, "made the table");
                Ok(())
            }
            // By somebody else, at the same time; or nobody knows, and the next look tells.
            Err(error) if error.is_transient() => Ok(()),
            Err(error) => Err(error.during("create the table")),
        }
    }

    /// Lets DynamoDB remove what is over for long. Without it the table only grows; a doctor tells.
    async fn switch_expiry_on(&self, client: &Client) {
        let table = &self.config.table;
        let asked = client.describe_time_to_live().table_name(table).send();
        // Who may not even look is not who made the table.
        let Ok(answer) = self.ask(Effect::Nothing, asked).await else { return };
        let told = answer.time_to_live_description();
        if told.is_some_and(|told| told.attribute_name().is_some()) {
            return;
        }
        let wanted =
            TimeToLiveSpecification::builder().enabled(true).attribute_name(EXPIRES).build();
        let Ok(wanted) = wanted else { return };
        let update =
            client.update_time_to_live().table_name(table).time_to_live_specification(wanted);
        if let Err(error) = self.ask(Effect::Nothing, update.send()).await
            // By somebody else, at the same time.
            && !error.message().contains("already enabled")
        {
            tracing::warn!(%error, table, "the table's time to live could not be switched on");
        }
    }
}

/// The key of the table.
const KEYS: [(&str, KeyType); 2] = [(GROUP, KeyType::Hash), (NAME, KeyType::Range)];

/// What is other than it has to be.
fn difference(table: &TableDescription) -> Option<String> {
    let found: Vec<_> = table
        .key_schema()
        .iter()
        .map(|key| {
            let name = key.attribute_name();
            let mut defined = table.attribute_definitions().iter();
            let kind = defined.find(|attribute| attribute.attribute_name() == name);
            let kind = kind.map_or("?", |attribute| attribute.attribute_type().as_str());
            format!("{name} {kind} {}", key.key_type().as_str())
        })
        .collect();
    let wanted = KEYS.map(|(name, kind)| format!("{name} S {}", kind.as_str()));
    (found != wanted)
        .then(|| format!("its key is ({}), not ({})", found.join(", "), wanted.join(", ")))
}

fn under_way(what: &str) -> Error {
    let message = format!("{what}; try again in a moment");
    Error::new(Kind::Unavailable, message).retry_as(Retry::Safe)
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("config", &self.config).finish_non_exhaustive()
    }
}
