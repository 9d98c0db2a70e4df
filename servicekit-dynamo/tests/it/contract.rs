//! The layout as others see it: what is in an item, and what becomes of items that somebody else wrote.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use servicekit_core::{
    Env, Instance, Kind, Label, Name, Namespace, State,
    registry::Claim,
    store::{Expect, Group, Keep, Life, Limits, Put, Store as _, WriteId},
};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::server::DynamoDb;

use crate::common;

async fn start() -> Option<(DynamoDb, Dynamo, Client)> {
    let server = DynamoDb::start()?;
    let config = common::config(&server.endpoint());
    let dynamo = Dynamo::new(config, Env::system(), Limits::default());
    dynamo.make_table().await.unwrap();
    let other = aws_sdk_dynamodb::config::Builder::from(&common::sdk())
        .region(aws_config::Region::new("eu-central-1"))
        .endpoint_url(format!("http://{}", server.endpoint()));
    Some((server, dynamo, Client::from_conf(other.build())))
}

fn group() -> Group {
    Group::of(&Namespace::default(), "tests")
}

fn put(name: &str, expect: Expect, keep: Keep) -> Put {
    let (key, value) = (group().key(name.parse::<Name>().unwrap()), (*b"{}").into());
    Put { key, value, expect, keep, write: WriteId::new(format!("write of {name}")) }
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

#[tokio::test]
async fn an_item_has_the_documented_attributes_and_no_others() {
    let Some((_server, dynamo, client)) = start().await else { return };
    let keys = async |name: &str| {
        let get = client.get_item().table_name("fleet");
        let get = get.key("group", text("default/tests")).key("name", text(name));
        let item = get.send().await.unwrap().item.unwrap();
        (item.keys().cloned().collect::<BTreeSet<_>>(), item)
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let durable = ["group", "name", "value", "write", "version"];
    dynamo.put(&put("a", Expect::Absent, Keep::Durable)).await.unwrap();
    assert_eq!(keys("a").await.0, set(&durable));

    let ttl = Duration::from_millis(7_500);
    let version = dynamo.put(&put("b", Expect::Absent, Keep::Ephemeral(ttl))).await.unwrap();
    let (names, item) = keys("b").await;
    let all = [&durable[..], &["ttl_ms", "ttl_s", "ends_ms", "expires"]].concat();
    assert_eq!(names, set(&all));
    let number = |item: &std::collections::HashMap<String, AttributeValue>, name: &str| {
        item[name].as_n().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((number(&item, "ttl_ms"), number(&item, "ttl_s")), (7_500, 8));
    let kept = number(&item, "expires") - number(&item, "ends_ms") / 1000;
    assert!((86_400..=86_402).contains(&kept), "{kept}");

    // A touch moves both ends, by a clock that was known to a second at first, and better now.
    dynamo
        .touch(&group().key("b".parse::<Name>().unwrap()), &WriteId::new("write of b"))
        .await
        .unwrap();
    let touched = keys("b").await.1;
    assert!(number(&touched, "ends_ms") + 1_000 >= number(&item, "ends_ms"));
    assert!(number(&touched, "expires") + 2 >= number(&item, "expires"));

    // A put that is durable leaves nothing that DynamoDB would remove it for.
    let version =
        dynamo.get(&group().key("b".parse::<Name>().unwrap())).await.unwrap().map(|record| {
            assert_ne!(record.version, version);
            record.version
        });
    dynamo.put(&put("b", Expect::At(version.unwrap()), Keep::Durable)).await.unwrap();
    assert_eq!(keys("b").await.0, set(&durable));
}

#[tokio::test]
async fn the_table_removes_by_the_documented_attribute() {
    let Some((_server, _dynamo, client)) = start().await else { return };
    let told = client.describe_time_to_live().table_name("fleet").send().await.unwrap();
    let told = told.time_to_live_description.unwrap();
    assert_eq!(told.attribute_name(), Some("expires"));
}

#[tokio::test]
async fn what_others_wrote_is_skipped_or_can_be_replaced() {
    let Some((_server, dynamo, client)) = start().await else { return };
    let write = async |name: &str, attribute: &str, value: AttributeValue| {
        let put = client.put_item().table_name("fleet").item("group", text("default/tests"));
        put.item("name", text(name)).item(attribute, value).send().await.unwrap();
    };
    dynamo.put(&put("own", Expect::Absent, Keep::Durable)).await.unwrap();
    write("no name/at all", "value", text("x")).await;
    write("bare", "other", text("x")).await;
    write("odd", "version", AttributeValue::Bool(true)).await;
    let listed = dynamo.list(&[group()]).await.unwrap();
    let names: Vec<_> = listed.iter().map(|record| record.key.name.as_str()).collect();
    assert_eq!(names, ["bare", "odd", "own"]);
    for record in &listed[..2] {
        assert_eq!((record.write.as_str(), record.life), ("", Life::Durable));
        let name = record.key.name.as_str();
        let error = dynamo.put(&put(name, Expect::Absent, Keep::Durable)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error:?}");
        let expect = Expect::At(record.version.clone());
        let version = dynamo.put(&put(name, expect.clone(), Keep::Durable)).await.unwrap();
        let error = dynamo.put(&put(name, expect, Keep::Durable)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "it is ours by now: {error:?}");
        dynamo.delete(&record.key, &version).await.unwrap();
    }
}

#[tokio::test]
async fn a_change_in_a_group_with_a_mark_raises_it_and_a_put_of_the_same_does_not() {
    let Some((server, dynamo, client)) = start().await else { return };
    let namespace = Namespace::default();
    let backend = servicekit_dynamo::backend(dynamo, namespace, Env::system(), Limits::default());
    let web: Label = "web".parse().unwrap();
    let session = backend.registry.open("node", Duration::from_secs(60)).await.unwrap();
    let now = Env::system().clock.wall();
    let mark = async || {
        let get = client.get_item().table_name("fleet");
        let get = get.key("group", text("default/instances/web")).key("name", text("#"));
        let item = get.send().await.unwrap().item;
        item.map_or(0, |item| item["version"].as_n().unwrap().parse::<u64>().unwrap())
    };
    let (claim, id) = (Claim::new(), "one".parse().unwrap());
    let mut instance = Instance::starting(web.clone(), id, "10.0.0.1", now);
    backend.registry.put(&session, &claim, &instance).await.unwrap();
    assert_eq!(mark().await, 1);
    backend.registry.put(&session, &claim, &instance).await.unwrap();
    assert_eq!(mark().await, 1, "nothing has changed");
    instance.change(State::Up, "rise 1", "200 OK", now);
    backend.registry.put(&session, &claim, &instance).await.unwrap();
    assert_eq!(mark().await, 2);
    let _ = server.take_calls();
    backend.registry.list(&web).await.unwrap();
    assert_eq!(
        backend.registry.list(&web).await.unwrap().instances.len(),
        1,
        "a mark is no record"
    );

    // Somebody made something else of it than a number: the next change mends it.
    let put = client.put_item().table_name("fleet").item("group", text("default/instances/web"));
    put.item("name", text("#")).item("version", text("abc")).send().await.unwrap();
    instance.change(State::Down, "fall 2", "503", now);
    backend.registry.put(&session, &claim, &instance).await.unwrap();
    assert!(mark().await > 0);
}
