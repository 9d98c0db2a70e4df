//! Registers a service that a probe finds well, sees it listed, and removes it again.
//!
//! ```sh
//! cargo run -p servicekit-examples --example register
//! ```

use std::{error::Error, sync::Arc, time::Duration};

use servicekit::{
    Env, Label,
    agent::{Agent, Options, Service, probe::Tcp},
    discovery::{self, View},
};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    let env = Env::system();
    let label: Label = "web".parse()?;

    // The service: something that listens.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;

    // Its sidekick: probes it, and keeps it registered.
    let probe = Tcp::new(&address.to_string(), Duration::from_secs(2), env.clock.clone())?;
    let service = Service {
        port: Some(address.port()),
        probes: vec![Arc::new(probe)],
        ..Service::new(label.clone(), "web-1".parse()?, address.ip().to_string())
    };
    let options = Options { node: "example".into(), ttl: Duration::from_secs(12) };
    let agent = Agent::new(backend.registry.clone(), backend.leases.clone(), env.clone(), options);

    // It runs until it is told to stop: here as soon as a reader sees the service.
    let view = View::open(&backend.registry, discovery::Options::labels([label.clone()]), env);
    let seen = async {
        loop {
            if let Some(up) = view.list(&label).and_then(|list| list.up.first().cloned()) {
                return println!("a reader sees {} since {}", up.address(), up.since);
            }
            view.changed().await;
        }
    };
    let outcome = agent.run(vec![service], seen, |report| println!("{report:?}")).await;

    println!("{outcome:?}; up now: {}", backend.registry.list(&label).await?.up().count());
    Ok(())
}
