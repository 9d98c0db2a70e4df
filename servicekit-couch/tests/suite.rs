//! The conformance suite on CouchDB, or on what has its API: as it is, with hosts whose clocks are apart, and behind networks
//! that are slow or fail.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::{process::ExitCode, sync::Arc, time::Duration};

use servicekit_core::{Env, Result, store::Limits};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::{
    proxy::{FAILING, SLOW, network},
    server,
    suite::{self, Fresh, Subject, Time},
};
use tokio::runtime::Runtime;

fn main() -> ExitCode {
    // The proxies live here, longer than any case.
    let runtime = Runtime::new().expect("a runtime can be built");
    let Some(server) = server::CouchDb::start() else { return suite::main_of([]) };
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
async fn slow_network(server: &Arc<server::CouchDb>) -> Subject {
    subject("slow-network", network(&server.endpoint(), SLOW).await, server.clone())
}

/// For the cases that are about faults.
async fn failing_network(server: &Arc<server::CouchDb>) -> Subject {
    subject("failing-network", network(&server.endpoint(), FAILING).await, server.clone()).failing()
}

/// Two hosts whose clocks are an hour apart.
fn clocks_apart(server: &Arc<server::CouchDb>) -> Subject {
    let server = server.clone();
    Subject::new("clocks-apart", Time::Real, move |env| {
        let server = server.clone();
        let config = Config::parse(&server.database_at(&server.endpoint()), false);
        async move {
            let config = config?;
            open(config.clone(), env.clone())?.make_databases().await?;
            let hosts = Fresh::on_two_hosts(&env, Duration::from_secs(3600), |env| {
                open(config.clone(), env).expect("it was opened before")
            });
            Ok(hosts.keeping(server))
        }
    })
}

fn subject(name: &'static str, endpoint: String, server: Arc<server::CouchDb>) -> Subject {
    Subject::new(name, Time::Real, move |env| {
        let server = server.clone();
        let config = Config::parse(&server.database_at(&endpoint), false);
        async move {
            let couch = open(config?, env)?;
            couch.make_databases().await?;
            Ok(Fresh::new(couch).keeping(server))
        }
    })
}

fn open(config: Config, env: Env) -> Result<Couch> {
    // The server of the npm packages has one thread, and sixteen cases ask at a time.
    let limits = Limits { attempt: Duration::from_secs(10), total: Duration::from_secs(10) };
    Couch::new(config, env, limits)
}
