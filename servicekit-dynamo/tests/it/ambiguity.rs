//! Each kind of write is applied, and its answer is lost: what is sent again fails its own condition, and the write id tells.

use std::{sync::Arc, time::Duration};

use servicekit_core::{
    Clock as _, Env, Kind, Name, Namespace,
    clock::SystemClock,
    store::{Expect, Group, Keep, Limits, Put, Reliable, Store as _, WriteId},
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    proxy::{Mode, Proxy},
    server::DynamoDb,
};

use crate::common;

/// Loses the answer to the next request that the server has answered, and is well then.
async fn lose_one(proxy: &Proxy, server: &DynamoDb, action: &str) {
    while !server.take_calls().iter().any(|call| call.action == action) {
        SystemClock.sleep(Duration::from_millis(5)).await;
    }
    // What is missing in a stream is never made good.
    proxy.set(Mode::Cut);
    SystemClock.sleep(Duration::from_millis(20)).await;
    proxy.set(Mode::Pass);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_settled_by_its_write_id() {
    let Some(server) = DynamoDb::start() else { return };
    let proxy = Proxy::start(&server.endpoint()).await;
    let limits = Limits { attempt: Duration::from_secs(20), total: Duration::from_secs(60) };
    let dynamo = Dynamo::new(common::config(&proxy.endpoint()), Env::system(), limits);
    dynamo.make_table().await.unwrap();
    let store = Reliable::new("dynamodb", Arc::new(dynamo.clone()), Env::system(), limits);
    let key = Group::of(&Namespace::default(), "tests").key("a".parse::<Name>().unwrap());
    let put = |value: &str, expect| Put {
        key: key.clone(),
        value: value.as_bytes().into(),
        expect,
        keep: Keep::Ephemeral(Duration::from_secs(60)),
        write: WriteId::new(value),
    };

    let losing = async |action| {
        let _ = server.take_calls();
        proxy.set(Mode::LoseAnswers);
        lose_one(&proxy, &server, action).await;
    };
    let first = put("one", Expect::Absent);
    let (version, ()) = tokio::join!(store.put(&first), losing("UpdateItem"));
    let found = dynamo.get(&key).await.unwrap().unwrap();
    assert_eq!((found.version, found.write), (version.unwrap(), first.write.clone()));

    let found = dynamo.get(&key).await.unwrap().unwrap();
    let second = put("two", Expect::At(found.version));
    let (version, ()) = tokio::join!(store.put(&second), losing("UpdateItem"));
    let found = dynamo.get(&key).await.unwrap().unwrap();
    assert_eq!((&*found.value, found.version), (&b"two"[..], version.unwrap()));

    let (touched, ()) = tokio::join!(store.touch(&key, &second.write), losing("UpdateItem"));
    touched.unwrap();
    let (touched, ()) = tokio::join!(store.touch(&key, &first.write), losing("UpdateItem"));
    assert_eq!(touched.unwrap_err().kind(), Kind::Conflict);

    let found = dynamo.get(&key).await.unwrap().unwrap();
    let (deleted, ()) = tokio::join!(store.delete(&key, &found.version), losing("DeleteItem"));
    deleted.unwrap();
    assert_eq!(dynamo.get(&key).await.unwrap(), None);
}
