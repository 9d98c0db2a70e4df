//! The conformance suite on real clusters: one server; three with TLS and users; and one behind networks that
//! are slow or fail.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

#[path = "it/common.rs"]
mod common;

use std::{process::ExitCode, sync::Arc, time::Duration};

use etcd_client::Client;
use servicekit_core::store::Limits;
use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    proxy::{FAILING, Mode, SLOW, network},
    server,
    suite::{self, Fresh, Subject, Time},
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    // The connections of a cluster's administrator and the proxies live here, longer than any case.
    let runtime = Runtime::new().expect("a runtime can be built");
    let subjects = [
        runtime.block_on(one_node()),
        runtime.block_on(three_nodes()),
        runtime.block_on(slow_network()),
        runtime.block_on(failing_network()),
    ];
    suite::main_of(subjects.into_iter().flatten())
}

async fn one_node() -> Option<Subject> {
    let server = server::Etcd::start()?;
    let address = format!("//{}", server.endpoints());
    Some(subject("one-node", address, server))
}

async fn three_nodes() -> Option<Subject> {
    let pki = common::Pki::new();
    let cluster = server::Etcd::start_cluster(3, Some(&pki.server()))?;
    let endpoints = cluster.endpoints();
    let all: Vec<_> = endpoints.split(',').collect();
    common::add_users(&Client::connect(all, Some(pki.options())).await.unwrap()).await;
    let address = format!("//agent:hush@{endpoints}?{}", pki.parameters());
    Some(subject("three-nodes-tls-users", address, (cluster, pki)))
}

/// Every case has to pass.
async fn slow_network() -> Option<Subject> {
    let (address, server) = behind_a_network(SLOW).await?;
    Some(subject("slow-network", address, server))
}

/// For the cases that are about faults.
async fn failing_network() -> Option<Subject> {
    let (address, server) = behind_a_network(FAILING).await?;
    Some(subject("failing-network", address, server).failing())
}

async fn behind_a_network(faults: &'static [Mode]) -> Option<(String, server::Etcd)> {
    let server = server::Etcd::start()?;
    let address = format!("//{}", network(&server.endpoints(), faults).await);
    Some((address, server))
}

fn subject(name: &'static str, address: String, keep: impl Send + Sync + 'static) -> Subject {
    let keep = Arc::new(keep);
    Subject::new(name, Time::Real, move |env| {
        let config = Config::parse(&address, address.contains("ca="));
        // A busy machine may let a server wait, and single requests are sent once.
        let limits = Limits { attempt: Duration::from_secs(10), total: Duration::from_secs(10) };
        let opened = config.and_then(|config| Etcd::new(config, env, limits));
        let keep = keep.clone();
        async move { Ok(Fresh::new(opened?).keeping(keep)) }
    })
}
