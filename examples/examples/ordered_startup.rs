//! Three nodes of a cluster start one after the other: each waits for its turn, starts, and lets the next begin.
//!
//! ```sh
//! cargo run -p servicekit-examples --example ordered_startup
//! ```

use std::{error::Error, time::Duration};

use servicekit::{
    Backend, Env, Label,
    lease::{self, Obtained, Request, Term},
};

async fn start(backend: &Backend, node: &str) -> Result<(), Box<dyn Error>> {
    let cluster: Label = "search".parse()?;
    // Unattended: it stands for a time also when this process ends, and nobody has to renew it.
    let request = Request {
        holder: node.parse()?,
        term: Term::Unattended { time: Duration::from_secs(240), reuse: true },
        slots: 1,
        wait: Some(Duration::from_secs(360)),
        note: String::new(),
    };
    let env = Env::system();
    let obtained = lease::obtain(&backend.leases, &cluster, &request, &env, |progress| {
        if let lease::Progress::Waiting { ahead, holders } = progress {
            let holder = holders.first().map_or("nobody", |grant| grant.holder.as_str());
            println!("{node} waits for {holder}, {ahead} ahead");
        }
    })
    .await?;
    let Obtained::Granted(ticket, granted) = obtained else {
        return Err(format!("{node} waited too long").into());
    };
    println!("{node} starts with token {}", granted.token);
    // Here the real thing would start, and its first successful probe would free the lease.
    backend.leases.leave(&ticket).await?;
    println!("{node} is up");
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    tokio::try_join!(
        start(&backend, "search-1"),
        start(&backend, "search-2"),
        start(&backend, "search-3"),
    )?;
    Ok(())
}
