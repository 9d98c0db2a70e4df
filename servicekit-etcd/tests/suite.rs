//! The conformance suite on a real etcd.

use std::{process::ExitCode, sync::Arc};

use servicekit_etcd::{Config, Etcd};
use servicekit_testkit::{
    server,
    suite::{self, Fresh, Subject, Time},
};

fn main() -> ExitCode {
    let Some(server) = server::Etcd::start() else { return ExitCode::SUCCESS };
    let server = Arc::new(server);
    suite::main(Subject::new("one-node", Time::Real, move |env| {
        let server = server.clone();
        async move {
            let config = Config::parse(&format!("//{}", server.endpoint()), false)?;
            Ok(Fresh::new(Etcd::new(config, env)?).keeping(server))
        }
    }))
}
