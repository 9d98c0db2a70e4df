//! The conformance suite on DynamoDB Local: as it is, with hosts whose clocks are apart, and behind networks that are slow or
//! fail.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

#[path = "it/common.rs"]
mod common;

use std::{process::ExitCode, sync::Arc, time::Duration};

use servicekit_core::{Env, store::Limits};
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    proxy::{FAILING, SLOW, network},
    server,
    suite::{self, Fresh, Subject, Time},
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    // The proxies live here, longer than any case.
    let runtime = Runtime::new().expect("a runtime can be built");
    let Some(server) = server::DynamoDb::start() else { return suite::main_of([]) };
    let server = Arc::new(server);
    let subjects = [
        subject("direct", server.endpoint(), server.clone()),
        clocks_apart(&server),
        runtime.block_on(slow_network(&server)),
        runtime.block_on(failing_network(&server)),
    ];
    suite::main_of(subjects)
}

/// Every case has to pass.
async fn slow_network(server: &Arc<server::DynamoDb>) -> Subject {
    subject("slow-network", network(&server.endpoint(), SLOW).await, server.clone())
}

/// For the cases that are about faults.
async fn failing_network(server: &Arc<server::DynamoDb>) -> Subject {
    subject("failing-network", network(&server.endpoint(), FAILING).await, server.clone()).failing()
}

/// Two hosts whose clocks are an hour apart.
fn clocks_apart(server: &Arc<server::DynamoDb>) -> Subject {
    let server = server.clone();
    Subject::new("clocks-apart", Time::Real, move |env| {
        let server = server.clone();
        async move {
            open(&server.endpoint(), env.clone()).make_table().await?;
            let hosts = Fresh::on_two_hosts(&env, Duration::from_secs(3600), |env| {
                open(&server.endpoint(), env)
            });
            Ok(hosts.keeping(server))
        }
    })
}

fn subject(name: &'static str, endpoint: String, server: Arc<server::DynamoDb>) -> Subject {
    Subject::new(name, Time::Real, move |env| {
        let dynamo = open(&endpoint, env);
        let server = server.clone();
        async move {
            dynamo.make_table().await?;
            Ok(Fresh::new(dynamo).keeping(server))
        }
    })
}

fn open(endpoint: &str, env: Env) -> Dynamo {
    // DynamoDB Local answers some two hundred requests a second, and sixteen cases ask at a time.
    let limits = Limits { attempt: Duration::from_secs(10), total: Duration::from_secs(10) };
    Dynamo::new(common::config(endpoint), env, limits)
}
