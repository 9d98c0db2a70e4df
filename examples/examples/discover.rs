//! Keeps a live list of who is up, and reads it without asking the store.
//!
//! ```sh
//! cargo run -p servicekit-examples --example discover
//! ```

use std::{error::Error, time::Duration};

use servicekit::{
    Env, Instance, Label, State,
    discovery::{Options, View},
    registry::Claim,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    let env = Env::system();
    let label: Label = "web".parse()?;

    let view = View::open(&backend.registry, Options::labels([label.clone()]), env.clone());
    view.ready().await;

    // Somebody registers; usually an agent in another process.
    let session = backend.registry.open("example", Duration::from_secs(12)).await?;
    let claim = Claim::new();
    let now = env.clock.wall();
    let mut instance = Instance::starting(label.clone(), "web-1".parse()?, "10.0.0.2", now);
    instance.port = Some(8080);
    instance.change(State::Up, "rise 1", "200 OK", now);
    backend.registry.put(&session, &claim, &instance).await?;

    // The view hears of it, and from then on answers from memory.
    loop {
        let list = view.list(&label).ok_or("the label is followed")?;
        if let Some(up) = list.up.first() {
            println!("up: {} because {}", up.address(), up.reason);
            break;
        }
        view.changed().await;
    }

    backend.registry.remove(&claim, &label, &instance.service_id).await?;
    backend.registry.close(&session).await?;
    Ok(())
}
