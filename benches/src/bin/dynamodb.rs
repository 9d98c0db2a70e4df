//! The DynamoDB store on a DynamoDB Local that this starts: lease cycles against the same requests sent by the bare SDK, and a
//! hundred who wait for one lease.
//!
//! ```sh
//! cargo run --release -p servicekit-benches --bin dynamodb
//! ```
//!
//! What is compared takes turns, so that a busy machine slows both.

use std::time::Duration;

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Region, retry::RetryConfig},
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::AttributeValue,
};
use futures_util::future::try_join;
use servicekit::{Backend, Clock as _, Env, Label, Namespace, clock::SystemClock, store::Limits};
use servicekit_benches::{
    Result,
    stores::{cycles, request, wait_for},
};
use servicekit_dynamo::{Config, Dynamo};
use servicekit_testkit::server;

#[tokio::main]
async fn main() -> Result<()> {
    let server = server::DynamoDb::start().ok_or("DynamoDB Local is missing")?;
    let backend = connect(&server).await?;
    let client = bare(&server);
    cycles(&backend, CYCLES, async || bare_cycle(&client).await).await?;
    hand_over(&backend, &server).await
}

fn sdk() -> aws_config::SdkConfig {
    let credentials = Credentials::new("bench", "bench", None, None, "bench");
    aws_config::SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}

async fn connect(server: &server::DynamoDb) -> Result<Backend> {
    let rest = format!("//eu-central-1/fleet?create=true&endpoint=http://{}", server.endpoint());
    let mut config = Config::parse(&rest)?;
    config.sdk = Some(sdk());
    let dynamo = Dynamo::new(config, Env::system(), Limits::default());
    dynamo.make_table().await?;
    Ok(servicekit_dynamo::backend(dynamo, Namespace::default(), Env::system(), Limits::default()))
}

fn bare(server: &server::DynamoDb) -> Client {
    let config = aws_sdk_dynamodb::config::Builder::from(&sdk())
        .region(Region::new("eu-central-1"))
        .endpoint_url(format!("http://{}", server.endpoint()))
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

const CYCLES: usize = 25;

/// The requests of a cycle, with values of the same sizes: the ticket and the head at once, the head; the queue and the
/// ticket's end at once, the head.
async fn bare_cycle(client: &Client) -> Result<()> {
    let (ticket, head) = ("t-123", "head");
    let getting = client
        .get_item()
        .table_name("fleet")
        .key("group", text("bare/lease/bench"))
        .key("name", text(head))
        .consistent_read(true);
    try_join(async { Ok(put(client, ticket, 240).send().await?) }, async {
        Ok::<_, aws_sdk_dynamodb::Error>(getting.send().await?)
    })
    .await?;
    put(client, head, 1000).send().await?;
    let listing = client
        .query()
        .table_name("fleet")
        .key_condition_expression("#group = :group AND #name > :mark")
        .expression_attribute_names("#group", "group")
        .expression_attribute_names("#name", "name")
        .expression_attribute_values(":group", text("bare/lease/bench"))
        .expression_attribute_values(":mark", text("#"))
        .consistent_read(true);
    let deleting = client
        .delete_item()
        .table_name("fleet")
        .key("group", text("bare/lease/bench"))
        .key("name", text(ticket))
        .condition_expression("attribute_exists(#group)")
        .expression_attribute_names("#group", "group");
    try_join(async { Ok(listing.send().await?) }, async {
        Ok::<_, aws_sdk_dynamodb::Error>(deleting.send().await?)
    })
    .await?;
    put(client, head, 1000).send().await?;
    Ok(())
}

fn put(client: &Client, name: &str, size: usize) -> UpdateItemFluentBuilder {
    client
        .update_item()
        .table_name("fleet")
        .key("group", text("bare/lease/bench"))
        .key("name", text(name))
        .update_expression("SET #value = :value, #write = :write, #version = :drawn")
        .condition_expression("NOT attribute_type(#version, :string)")
        .expression_attribute_names("#value", "value")
        .expression_attribute_names("#write", "write")
        .expression_attribute_names("#version", "version")
        .expression_attribute_values(":value", text(&"x".repeat(size)))
        .expression_attribute_values(":write", text("0123456789abcdef0123456789abcdef"))
        .expression_attribute_values(":drawn", AttributeValue::N("123456789012345678".into()))
        .expression_attribute_values(":string", text("S"))
}

fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

const WAITERS: usize = 100;
const HAND_OVERS: usize = 20;
const SECONDS: u32 = 20;

async fn hand_over(backend: &Backend, server: &server::DynamoDb) -> Result<()> {
    let (clock, lease) = (SystemClock, "handed".parse::<Label>()?);
    let (mut ticket, _) = backend.leases.join(&lease, &request("first")?).await?;
    let mut waiting = Vec::new();
    for i in 0..WAITERS {
        waiting.push(wait_for(&backend.leases, &lease, &format!("w{i}")).await?);
    }
    clock.sleep(Duration::from_secs(5)).await;
    backend.leases.renew(&ticket).await?;
    let _ = server.take_calls();
    clock.sleep(Duration::from_secs(SECONDS.into())).await;
    let sent = f64::from(u32::try_from(server.take_calls().len())?);
    println!("requests of 100 waiters:         {:8.1} a second", sent / f64::from(SECONDS));
    let mut times = Vec::new();
    for (next, granted) in waiting.into_iter().take(HAND_OVERS) {
        let began = clock.now();
        backend.leases.leave(&ticket).await?;
        times.push(granted.await?.since(began));
        ticket = next;
    }
    times.sort();
    let (median, most) = (times[HAND_OVERS / 2], times[HAND_OVERS - 1]);
    println!(
        "leave and grant, 100 waiters:    {median:8.0?} (the longest of {HAND_OVERS}: {most:.0?})"
    );
    Ok(())
}
