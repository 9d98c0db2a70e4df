//! The instances of a label as they change, also while the store is away.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt as _, stream::BoxStream};
use servicekit::{Error, Instance, Result, ServiceId, registry::Event};

use crate::context::Outage;

/// Folds the events of a label into its list.
pub(super) struct Following {
    events: BoxStream<'static, Result<Event>>,
    instances: BTreeMap<ServiceId, Arc<Instance>>,
    outage: Outage,
    error: Option<Error>,
}

impl Following {
    pub(super) fn new(events: BoxStream<'static, Result<Event>>) -> Self {
        Self { events, instances: BTreeMap::new(), outage: Outage::default(), error: None }
    }

    /// The whole list after the next event. An outage of the store is said once, and changes nothing; a refusal ends it.
    ///
    /// Dropping the future loses no event.
    pub(super) async fn next(&mut self) -> Result<Vec<Arc<Instance>>> {
        loop {
            match self.events.next().await {
                Some(Ok(event)) => {
                    self.error = None;
                    self.outage.back();
                    self.take(event);
                    return Ok(self.instances.values().cloned().collect());
                }
                Some(Err(error)) if error.is_refusal() => return Err(error),
                Some(Err(error)) => {
                    self.outage.away(&error);
                    self.error = Some(error);
                }
                // By contract it does not end; a registry that breaks that has nothing more to say.
                None => std::future::pending().await,
            }
        }
    }

    /// Why the store is away, if it is.
    pub(super) fn away(self) -> Option<Error> {
        self.error
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                let keyed = snapshot.instances.into_iter();
                self.instances = keyed.map(|one| (one.service_id.clone(), one)).collect();
            }
            Event::Changed(instance) => {
                self.instances.insert(instance.service_id.clone(), instance);
            }
            Event::Removed(id) => {
                self.instances.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use servicekit::{Kind, registry::Snapshot};

    use super::*;

    #[tokio::test]
    async fn an_outage_is_waited_for_and_a_refusal_is_not() {
        let away = || Err(Error::new(Kind::Unavailable, "x"));
        let snapshot = || Ok(Event::Snapshot(Snapshot { instances: Vec::new() }));
        for refusal in [Kind::Denied, Kind::Invalid, Kind::Unsupported] {
            let events = [away(), snapshot(), away(), Err(Error::new(refusal, "x")), snapshot()];
            let mut following = Following::new(futures_util::stream::iter(events).boxed());
            assert_eq!(following.next().await.unwrap(), []);
            assert_eq!(following.next().await.unwrap_err().kind(), refusal);
        }
    }
}
