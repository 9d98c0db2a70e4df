//! A group's mark: a number that rises after each change, so that those who follow need not read the group to see that nothing
//! has happened.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_sdk_dynamodb::types::AttributeValue;
use servicekit_core::{Effect, Kind, Result, Retry, store::Group};

use crate::{
    records::{VERSION, integer, mark_of, number},
    table::Table,
};

/// The marks that this process still owes.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<BTreeSet<Group>>);

/// A change that may come to be without a mark. Unless it is settled, the next change of its group, by this process, is marked
/// whatever it changes: a change whose answer was lost may look to its next try like nothing new.
#[derive(Debug)]
pub(crate) struct Debt<'a> {
    marks: &'a Marks,
    group: &'a Group,
    /// Whether an earlier one was left behind.
    pub(crate) is_old: bool,
    is_settled: bool,
}

impl Marks {
    /// Begins a change of `group`.
    pub(crate) fn begin<'a>(&'a self, group: &'a Group) -> Debt<'a> {
        let is_old = self.lock().remove(group);
        Debt { marks: self, group, is_old, is_settled: false }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Group>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debt<'_> {
    /// Nothing was changed.
    pub(crate) fn forgive(mut self) {
        self.is_settled = !self.is_old;
    }

    /// Raises the mark.
    ///
    /// # Errors
    ///
    /// Those of reaching the store, as `Unknown`: the change is made, and to make it again raises the mark.
    pub(crate) async fn pay(mut self, table: &Table) -> Result<()> {
        let (client, _) = table.open().await?;
        let change = |expression: &str, value: AttributeValue| {
            client
                .update_item()
                .table_name(&table.config.table)
                .set_key(Some(mark_of(self.group)))
                .update_expression(expression)
                .expression_attribute_names("#version", VERSION)
                .expression_attribute_values(":value", value)
                .send()
        };
        let raised =
            match table.ask(Effect::Nothing, change("ADD #version :value", number(1))).await {
                // Somebody made something else of it than a number: any other one will do.
                Err(error) if error.kind() == Kind::Invalid => {
                    let anew = number(table.clock.latest());
                    table.ask(Effect::Nothing, change("SET #version = :value", anew)).await
                }
                raised => raised,
            };
        raised.map_err(|error| error.retry_as(Retry::Unknown))?;
        self.is_settled = true;
        Ok(())
    }
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.marks.lock().insert(self.group.clone());
        }
    }
}

/// Reads a group's mark, which may be a moment old; none is 0.
pub(crate) async fn read(table: &Table, group: &Group) -> Result<i64> {
    let (client, _) = table.open().await?;
    let get = client.get_item().table_name(&table.config.table).set_key(Some(mark_of(group)));
    let found = table.ask(Effect::Nothing, get.send()).await?.item;
    Ok(found.and_then(|item| integer(&item, VERSION)).unwrap_or(0))
}
