//! Takes the store's time from every answer. (Requests are signed by the SDK, which corrects a wrong clock of the host by the
//! same answers.)

use std::sync::Arc;

use aws_sdk_dynamodb::{
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::{
            BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
        },
    },
    error::BoxError,
};
use aws_smithy_types::{
    DateTime,
    config_bag::{Storable, StoreReplace},
    date_time::Format,
};
use servicekit_core::{Clock, Instant, store::StoreClock};

/// Listens to what answers say of the time.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) host: Arc<dyn Clock>,
    pub(crate) store: StoreClock,
}

/// When the request of this attempt was sent.
#[derive(Debug)]
struct Sent(Instant);

impl Storable for Sent {
    type Storer = StoreReplace<Self>;
}

impl Intercept for Listener {
    fn name(&self) -> &'static str {
        "Listener"
    }

    fn read_before_transmit(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        state.interceptor_state().store_put(Sent(self.host.now()));
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        answer: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        state: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = answer.response().headers().get("date");
        let date = date.and_then(|date| DateTime::from_str(date, Format::HttpDate).ok());
        let date = date.and_then(|date| date.to_millis().ok());
        if let (Some(date), Some(Sent(sent))) = (date, state.load::<Sent>()) {
            self.store.learn(date, *sent, self.host.now());
        }
        Ok(())
    }
}
