//! The conformance suite on DynamoDB Local.

#![allow(clippy::unwrap_used, reason = "all of it is tests")]

mod common;

use std::{process::ExitCode, sync::Arc};

use servicekit_core::store::Limits;
use servicekit_dynamo::Dynamo;
use servicekit_testkit::{
    server,
    suite::{self, Fresh, Subject, Time},
};

fn main() -> ExitCode {
    suite::main_of([direct()].into_iter().flatten())
}

fn direct() -> Option<Subject> {
    let server = server::DynamoDb::start()?;
    let endpoint = server.endpoint();
    Some(subject("direct", endpoint, server))
}

fn subject(name: &'static str, endpoint: String, keep: impl Send + Sync + 'static) -> Subject {
    let keep = Arc::new(keep);
    Subject::new(name, Time::Real, move |env| {
        let dynamo = Dynamo::new(common::config(&endpoint), env, Limits::default());
        let keep = keep.clone();
        async move {
            dynamo.make_table().await?;
            Ok(Fresh::new(dynamo).keeping(keep))
        }
    })
}
