//! Following a group: a snapshot, then every change from its revision on, so that there is no gap between them.

use std::{sync::Arc, time::Duration};

use async_stream::stream;
use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use futures_util::stream::BoxStream;
use servicekit_core::{
    Effect, Error, Kind, Result, Retry,
    clock::timeout,
    store::{Change, Group},
};

use crate::{
    cluster::MAX_ANSWER_BYTES,
    error::{explain, is_of_this_member},
    records::decode,
    store::Etcd,
};

/// The pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Follows one group; see [`Store::watch`](servicekit_core::store::Store::watch).
pub(crate) fn follow_group(etcd: Etcd, group: Group) -> BoxStream<'static, Result<Change>> {
    Box::pin(stream! {
        let env = etcd.0.env.clone();
        let mut pause = FIRST_PAUSE;
        loop {
            match Following::begin(&etcd, &group).await {
                Ok((mut following, snapshot)) => {
                    pause = FIRST_PAUSE;
                    yield Ok(snapshot);
                    let error = loop {
                        match following.next().await {
                            Ok(changes) => {
                                for change in changes {
                                    yield Ok(change);
                                }
                            }
                            Err(error) => break error,
                        }
                    };
                    yield Err(error);
                }
                Err(error) => yield Err(error),
            }
            // All who watch lose their member at the same moment.
            env.clock.sleep(env.random.jitter(pause, 0.5)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    })
}

struct Following<'a> {
    etcd: &'a Etcd,
    group: &'a Group,
    member: usize,
    stream: WatchStream,
}

impl<'a> Following<'a> {
    async fn begin(etcd: &'a Etcd, group: &'a Group) -> Result<(Self, Change)> {
        let of = |error: Error| error.on("etcd").during("watch").at(group);
        let (records, revision) = etcd.read(std::slice::from_ref(group)).await.map_err(of)?;
        let member = etcd.0.cluster.current();
        let layout = &etcd.0.layout;
        let options = WatchOptions::new()
            .with_range(layout.end(group))
            .with_start_revision(revision + 1)
            .with_progress_notify()
            .with_fragment();
        let start = layout.start(group);
        let ask = |client: Arc<Client>| async move {
            let mut watch = client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES);
            watch.watch(start, Some(options)).await
        };
        let stream = etcd.0.cluster.ask(Effect::Nothing, ask).await.map_err(of)?;
        let mut following = Self { etcd, group, member, stream };
        following.expect_creation().await.map_err(of)?;
        Ok((following, Change::Snapshot(records)))
    }

    /// A server that takes the request and says nothing would be waited for in vain.
    async fn expect_creation(&mut self) -> Result<()> {
        let clock = self.etcd.0.env.clock.clone();
        let patience = self.etcd.0.cluster.patience();
        let created = match timeout(&*clock, patience, self.receive()).await {
            Ok(created) => created?,
            Err(_) => {
                self.etcd.0.cluster.leave(self.member);
                let message = format!("the server did not begin to watch within {patience:?}");
                return Err(Error::new(Kind::Timeout, message).retry_as(Retry::Safe));
            }
        };
        if created.created() { Ok(()) } else { Err(ended("it did not begin")) }
    }

    /// The changes of one message; none in one that only tells how far the server is.
    async fn next(&mut self) -> Result<Vec<Change>> {
        let group = self.group;
        let of = |error: Error| error.on("etcd").during("watch").at(group);
        let message = self.receive().await.map_err(of)?;
        let layout = &self.etcd.0.layout;
        let changes = message.events().iter().filter_map(|event| {
            let kv = event.kv()?;
            let name = layout.name(self.group, kv.key())?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(decode(self.group.key(name), kv)),
                EventType::Delete => Change::Removed(name),
            })
        });
        Ok(changes.collect())
    }

    async fn receive(&mut self) -> Result<WatchResponse> {
        match self.stream.message().await {
            // Also when what came after the snapshot is compacted already.
            Ok(Some(message)) if message.canceled() => Err(ended(message.cancel_reason())),
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(ended("the server ended it")),
            Err(error) => {
                if is_of_this_member(&error) {
                    self.etcd.0.cluster.leave(self.member);
                }
                Err(explain(error, Effect::Nothing))
            }
        }
    }
}

fn ended(reason: &str) -> Error {
    Error::new(Kind::Unavailable, format!("the watch has ended: {reason}")).retry_as(Retry::Safe)
}
