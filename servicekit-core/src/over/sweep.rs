//! Sweeping up records that have ended, where the store leaves the end of a record to observers, and keeps it for good.

use std::time::Duration;

use futures_util::future::join_all;

use crate::{
    Env,
    clock::timeout,
    store::{Group, Reliable, Store as _},
};

/// One process in so many sweeps: it reads a whole group for that, and after an outage all processes begin anew at once.
const ONE_IN: u64 = 8;
/// How many records it deletes: a multiple of what so many processes make, so that they cannot add up.
const SWEPT: usize = 32;
/// How many at a time.
const TOGETHER: usize = 8;

/// A process has better things to do.
const LONGEST: Duration = Duration::from_secs(2);

/// Now and then deletes some records of a group that are over. Nothing hangs on it: it gives up early, and fails in silence.
///
/// Whoever touched or replaced one meanwhile keeps it. Who is told so that it has ended was to be told that anyway.
pub(super) async fn sweep(store: &Reliable, env: &Env, group: &Group) {
    if store.capabilities().server_expiry || env.random.below(ONE_IN) != 0 {
        return;
    }
    let sweep = async {
        let records = store.list(std::slice::from_ref(group)).await?;
        let over: Vec<_> = records.iter().filter(|record| record.is_over()).take(SWEPT).collect();
        for some in over.chunks(TOGETHER) {
            join_all(some.iter().map(|record| store.delete(&record.key, &record.version))).await;
        }
        crate::Result::<()>::Ok(())
    };
    if !matches!(timeout(&*env.clock, LONGEST, sweep).await, Ok(Ok(()))) {
        tracing::debug!(%group, "what is over was not swept up");
    }
}
