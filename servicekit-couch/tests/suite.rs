//! The conformance suite on CouchDB, or on what has its API: as it is, with hosts whose clocks are apart, and behind networks
//! that are slow or fail.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

use std::{process::ExitCode, sync::Arc, time::Duration};

use servicekit_core::{Env, Result, store::Limits};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::{
    proxy::{Mode, Proxy},
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

/// Everything arrives, late or in pieces: nobody may notice, and every case has to pass.
async fn slow_network(server: &Arc<server::CouchDb>) -> Subject {
    const SLOW: [Mode; 3] = [
        Mode::Delay(Duration::from_millis(20)),
        Mode::Drip(Duration::from_millis(1)),
        Mode::Silence,
    ];
    subject("slow-network", behind_a_network(server, &SLOW).await, server.clone())
}

/// Connections break, and answers are lost with them, of requests that were applied: for the cases that are about that.
async fn failing_network(server: &Arc<server::CouchDb>) -> Subject {
    const FAILING: [Mode; 3] = [Mode::LoseAnswers, Mode::Cut, Mode::Silence];
    subject("failing-network", behind_a_network(server, &FAILING).await, server.clone()).failing()
}

/// Returns where the server is found there.
async fn behind_a_network(server: &server::CouchDb, faults: &'static [Mode]) -> String {
    let proxy = Proxy::start(&server.endpoint()).await;
    let endpoint = proxy.endpoint();
    proxy.fail_now_and_then(faults);
    endpoint
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
