//! Reading: a document, or a group page by page, and what to make of one that was written in two places.

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use servicekit_core::{
    Effect, Error, Kind, Result, Retry,
    store::{Group, Key, Record},
};

use crate::{
    records::{Document, id_of, is_of_a_lease, is_of_certificates, prefix},
    store::{Couch, Inner},
};

/// The records of one page of a list: a thousand instances are one, and a page comes over a slow line within a request's time.
const PAGE: usize = 1200;
/// So many revisions that lost are deleted at once; others may have made any number.
const MOST_LOST: usize = 16;

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    rows: Vec<Row<'a>>,
}

#[derive(Deserialize)]
struct Row<'a> {
    id: String,
    #[serde(borrow)]
    doc: Option<&'a RawValue>,
}

impl Couch {
    /// Reads one group, page by page.
    pub(crate) async fn read_group(&self, group: &Group) -> Result<Vec<Record>> {
        let Inner { database, strangers, .. } = &*self.0;
        database.open().await?;
        let prefix = prefix(group)?;
        // The character after the colon at its end.
        let end = quoted(&format!("{};", &prefix[..prefix.len() - 1]));
        let mut records = Vec::new();
        let mut start = prefix.clone();
        loop {
            let path = format!(
                "{}/_all_docs?include_docs=true&conflicts=true&inclusive_end=false&startkey=%22{}%22&endkey=%22{end}%22\
                 &limit={PAGE}",
                database.of(group),
                quoted(&start)
            );
            let answer = database.ask(Effect::Nothing, Method::GET, &path, None).await?;
            let now = database.http.clock.earliest();
            let Page { rows } = answer.read()?;
            // A page begins with the last of the one before, if that is still there.
            for row in rows.iter().filter(|row| row.id != start) {
                let Some(key) = strangers.key(group, &prefix, &row.id) else { continue };
                let Some(document) = row.doc.and_then(|doc| read_document(doc, &key)) else {
                    continue;
                };
                records.push(self.settled(&key, &document)?.decode(key, now));
            }
            match rows.last() {
                Some(last) if rows.len() >= PAGE => start.clone_from(&last.id),
                _ => break,
            }
        }
        records.sort_by(|a: &Record, b| a.key.cmp(&b.key));
        Ok(records)
    }

    /// A document that has one revision, or of which all see the same one: CouchDB chooses it everywhere alike. A lease must
    /// not depend on that, since both sides were told that theirs was written.
    pub(crate) fn settled<'a>(&self, key: &Key, document: &'a Document) -> Result<&'a Document> {
        if !document.conflicts.is_empty() && is_of_a_lease(&key.group) {
            let message = format!(
                "the document was written in two places ({} and {}): nothing is granted until all revisions but one are deleted",
                document.rev,
                document.conflicts.join(", ")
            );
            // It takes a person: to ask again at once is in vain, and who waits goes on waiting.
            return Err(Error::new(Kind::Unavailable, message).retry_as(Retry::Exhausted).at(key));
        }
        Ok(document)
    }

    /// Reads one document.
    pub(crate) async fn find(&self, key: &Key) -> Result<Option<Document>> {
        let database = &self.0.database;
        database.open().await?;
        let path = format!("{}/{}", database.of(&key.group), id_of(key)?);
        let asked = format!("{path}?conflicts=true");
        let answer = match database.ask(Effect::Nothing, Method::GET, &asked, None).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            answer => answer?,
        };
        let document: Document = answer.read()?;
        self.settled(key, &document)?;
        // Whoever is about to write reads first. What lost must not come back when what won is deleted. A certificate's key is not
        // to be had again: it stays.
        let lost = document.conflicts.iter().filter(|_| !is_of_certificates(&key.group));
        for lost in lost.take(MOST_LOST) {
            let lost = format!("{path}?rev={}", quoted(lost));
            match database.ask(Effect::Nothing, Method::DELETE, &lost, None).await {
                Ok(_) => tracing::info!(%key, "deleted a revision that lost against another"),
                // Who may only read leaves it to others.
                Err(error) => tracing::debug!(%key, %error, "a revision that lost stays"),
            }
        }
        Ok(Some(document))
    }
}

/// The document, unless somebody made nonsense of it that is not even JSON to us; that is reported.
pub(crate) fn read_document(json: &RawValue, key: &Key) -> Option<Document> {
    let document = serde_json::from_str::<Document>(json.get());
    if let Err(error) = &document
        && json.get() != "null"
    {
        tracing::warn!(%key, %error, "skipped a document that cannot be read");
    }
    document.ok().filter(|document| !document.deleted)
}

/// An id as it stands in the address of a request, within quotation marks: others may have written any.
fn quoted(id: &str) -> String {
    let json = serde_json::Value::from(id).to_string();
    percent_encoding::utf8_percent_encode(
        &json[1..json.len() - 1],
        percent_encoding::NON_ALPHANUMERIC,
    )
    .to_string()
}
