//! What followers see, and what they send, while a table fails now and then or cannot keep up.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt as _;
use servicekit_core::{
    Clock, Env, Instant, Kind, Name, Namespace, Retry, Timestamp,
    clock::timeout,
    store::{Change, Group, Key, Limits, Reliable, Store as _},
};
use servicekit_dynamo::Dynamo;

use crate::{
    common,
    stub::{DATE, Reply, Stub, TABLE, put},
};

/// A clock on which time flies.
#[derive(Debug)]
struct Fast(Arc<dyn Clock>, Instant);

const FASTER: u32 = 10;

#[async_trait]
impl Clock for Fast {
    fn now(&self) -> Instant {
        self.1 + self.0.now().since(self.1) * FASTER
    }

    fn wall(&self) -> Timestamp {
        self.0.wall()
    }

    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration / FASTER).await;
    }

    async fn sleep_until(&self, deadline: Instant) {
        self.sleep(deadline.since(self.now())).await;
    }
}

fn fast() -> Env {
    let Env { clock, random } = Env::system();
    let now = clock.now();
    Env { clock: Arc::new(Fast(clock, now)), random }
}

/// A table that answers everything but its description with this.
async fn table(reply: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> (Stub, Dynamo) {
    let stub = Stub::start(DATE, move |action, before| match action {
        "DescribeTable" => Reply::Say(200, TABLE.into()),
        _ => reply(action, before),
    });
    let stub = stub.await;
    let mut config = common::config(&stub.endpoint);
    config.create = false;
    let dynamo = Dynamo::new(config, fast(), Limits::default());
    (stub, dynamo)
}

fn group() -> Group {
    Group::scoped(&Namespace::default(), "instances", &"web".parse().unwrap())
}

fn key() -> Key {
    group().key("a".parse::<Name>().unwrap())
}

fn said(json: &str) -> Reply {
    Reply::Say(200, json.into())
}

fn asked(stub: &Stub, action: &str) -> usize {
    stub.asked().iter().filter(|asked| asked.action == action).count()
}

#[tokio::test]
async fn a_mark_that_fails_is_raised_by_the_next_attempt() {
    let (stub, dynamo) = table(|action, before| match (action, before) {
        ("UpdateItem", 1) => Reply::error(500, "InternalServerError", "x"),
        ("UpdateItem", 2) => Reply::error(400, "ConditionalCheckFailedException", "x"),
        ("GetItem", _) => said(
            r#"{"Item":{"name":{"S":"a"},"value":{"S":"{}"},"write":{"S":"mine"},"version":{"N":"7"}}}"#,
        ),
        _ => said("{}"),
    })
    .await;
    let env = Env::system();
    let reliable = Reliable::new("dynamodb", Arc::new(dynamo), env, Limits::default());
    assert_eq!(reliable.put(&put(key())).await.unwrap().as_str(), "7");
    assert_eq!(asked(&stub, "UpdateItem"), 4, "twice the record, twice the mark");
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_marked_by_the_next() {
    const SAME: &str = r#"{"Attributes":{"value":{"S":"{}"}}}"#;

    let (stub, dynamo) = table(|action, before| match (action, before) {
        ("UpdateItem", 0) => Reply::Close,
        _ => said(SAME),
    })
    .await;
    assert_eq!(dynamo.put(&put(key())).await.unwrap_err().retry(), Retry::Unknown);
    // It is there already, and nobody was told.
    dynamo.put(&put(key())).await.unwrap();
    assert_eq!(asked(&stub, "UpdateItem"), 3, "the mark, too");
    dynamo.put(&put(key())).await.unwrap();
    assert_eq!(asked(&stub, "UpdateItem"), 4, "once");
}

#[tokio::test]
async fn a_request_that_fails_now_and_then_is_no_outage() {
    let (stub, dynamo) = table(|action, before| match (action, before % 3) {
        (_, 1) => Reply::error(500, "InternalServerError", "x"),
        ("GetItem", _) => said(&format!(r#"{{"Item":{{"version":{{"N":"{before}"}}}}}}"#)),
        _ => said(r#"{"Items":[]}"#),
    })
    .await;
    let mut changes = dynamo.watch(&group());
    assert!(matches!(changes.next().await, Some(Ok(Change::Snapshot(_)))));
    let more = timeout(&*Env::system().clock, Duration::from_secs(4), changes.next()).await;
    assert!(more.is_err(), "{more:?}");
    assert!(asked(&stub, "Query") > 5);
}

#[tokio::test]
async fn a_table_that_cannot_keep_up_is_asked_more_and_more_rarely() {
    let (stub, dynamo) = table(|action, _| match action {
        "Query" => said(r#"{"Items":[]}"#),
        _ => Reply::error(400, "ThrottlingException", "slow"),
    })
    .await;
    let mut changes = dynamo.watch(&group());
    let clock = Env::system().clock;
    // Two minutes, on the clock of who follows.
    let begun = clock.now();
    let mut told = 0;
    while clock.now().since(begun) < Duration::from_secs(12) {
        match timeout(&*clock, Duration::from_secs(3), changes.next()).await {
            Ok(Some(Err(error))) => {
                assert_eq!(error.kind(), Kind::Throttled, "{error:?}");
                told += 1;
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
    }
    assert!(told > 0, "whoever follows hears of it");
    let asked = (asked(&stub, "GetItem"), asked(&stub, "Query"));
    assert!(asked.0 < 30 && asked.1 == 0, "{asked:?} in two minutes, of 60 on a good day");
}
