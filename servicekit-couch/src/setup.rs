//! What an administrator makes once: the databases, the design document that refuses what must not be written, and roles.

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use servicekit_core::{Effect, Error, Kind, Result};

use crate::database::{BEATS_KEPT, Database};

/// The design document that both databases have.
pub(crate) const DESIGN: &str = "_design/servicekit";
/// What it refuses: whole functions are what CouchDB takes.
pub(crate) const VALIDATE: &str = include_str!("validate.js");
/// Who may read, and by the design document: write nothing, all but certificates, certificates.
pub(crate) const ROLES: [&str; 3] = ["servicekit-reader", "servicekit-agent", "servicekit-issuer"];

/// The design document as it stands.
#[derive(Deserialize, Serialize)]
pub(crate) struct Design {
    #[serde(rename = "_rev", skip_serializing_if = "Option::is_none")]
    rev: Option<String>,
    #[serde(default)]
    pub(crate) validate_doc_update: String,
    /// What others put there.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Who may use a database.
#[derive(Deserialize, Serialize)]
pub(crate) struct Security {
    #[serde(default)]
    members: People,
    #[serde(flatten)]
    other: Map<String, Value>,
}

#[derive(Default, Deserialize, Serialize)]
struct People {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(flatten)]
    other: Map<String, Value>,
}

impl Database {
    /// Makes what is missing in one of the two databases, and the database itself; returns what that was.
    pub(crate) async fn set_up(&self, name: &str) -> Result<Vec<&'static str>> {
        let mut made = Vec::new();
        if self.info_if_there(name).await?.is_none() {
            self.create(name).await?;
            made.push("the database");
        }
        if name == self.beats && self.revisions_kept().await?.is_some_and(|kept| kept > BEATS_KEPT)
        {
            self.limit_revisions().await?;
            made.push("its limit of revisions");
        }
        let design = self.design(name).await?;
        if design.as_ref().is_none_or(|design| design.validate_doc_update != VALIDATE) {
            self.make_design(name, design).await?;
            made.push("the design document");
        }
        if let Some(mut security) = self.security(name).await?
            && security.is_as_it_came()
        {
            security.members.roles.extend(ROLES.map(Into::into));
            self.write(&format!("{name}/_security"), &security).await?;
            made.push("the roles");
        }
        Ok(made)
    }

    /// Makes the design document of a database that was just made; another process may have been faster.
    pub(crate) async fn make_first_design(&self, name: &str) -> Result<()> {
        match self.make_design(name, None).await {
            Err(error) if error.kind() == Kind::Conflict => Ok(()),
            made => made,
        }
    }

    /// Writes the design document over what there was.
    pub(crate) async fn make_design(&self, name: &str, before: Option<Design>) -> Result<()> {
        let empty = Design { rev: None, validate_doc_update: String::new(), other: Map::new() };
        let design = Design { validate_doc_update: VALIDATE.into(), ..before.unwrap_or(empty) };
        self.write(&format!("{name}/{DESIGN}"), &design).await
    }

    pub(crate) async fn design(&self, name: &str) -> Result<Option<Design>> {
        let path = format!("{name}/{DESIGN}");
        match self.http.ask(Effect::Nothing, Method::GET, &path, None).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            answer => answer?.read().map(Some),
        }
    }

    /// Who may use it; `None` where a server lets everybody.
    pub(crate) async fn security(&self, name: &str) -> Result<Option<Security>> {
        let path = format!("{name}/_security");
        match self.http.ask(Effect::Nothing, Method::GET, &path, None).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            answer => answer?.read().map(Some),
        }
    }

    /// How many revisions of a beat are remembered; `None` where there is no such limit.
    pub(crate) async fn revisions_kept(&self) -> Result<Option<u32>> {
        let path = format!("{}/_revs_limit", self.beats);
        match self.http.ask(Effect::Nothing, Method::GET, &path, None).await {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unsupported) => Ok(None),
            answer => answer?.read().map(Some),
        }
    }

    async fn write(&self, path: &str, what: &(impl Serialize + Sync)) -> Result<()> {
        let body = serde_json::to_vec(what).map_err(|error| {
            Error::new(Kind::Unexpected, "it cannot be written as JSON").because(error)
        })?;
        self.http.ask(Effect::Write, Method::PUT, path, Some(body)).await.map(drop)
    }
}

impl Security {
    /// Whether the design document goes by roles, as it says itself.
    pub(crate) fn has_roles(&self) -> bool {
        self.members.roles.iter().any(|member| member == ROLES[1])
    }

    /// Whether anybody may use the database: it has no members at all.
    pub(crate) fn is_open(&self) -> bool {
        self.members.names.is_empty() && self.members.roles.is_empty()
    }

    /// Whether nobody has said yet who may use the database: administrators alone, or everybody, by CouchDB's version.
    fn is_as_it_came(&self) -> bool {
        self.members.names.is_empty() && self.members.roles.iter().all(|role| role == "_admin")
    }
}
