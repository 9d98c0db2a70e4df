//! Two workers want the same lease: one at a time, each with a higher token, which the guarded resource checks.
//!
//! ```sh
//! cargo run -p servicekit-examples --example lease
//! ```

use std::{error::Error, sync::Mutex, time::Duration};

use servicekit::{
    Backend, Env, Label,
    lease::{self, Request, Term, Token},
};

/// What the lease protects. It refuses whoever comes with a token lower than the highest that it has seen.
#[derive(Default)]
struct Resource(Mutex<Option<Token>>);

impl Resource {
    fn write(&self, token: Token, what: &str) -> Result<(), String> {
        let mut highest = self.0.lock().map_err(|error| error.to_string())?;
        if highest.is_some_and(|highest| token < highest) {
            return Err(format!("{what}: token {token} is stale"));
        }
        *highest = Some(token);
        println!("{what} wrote with token {token}");
        Ok(())
    }
}

async fn work(backend: &Backend, who: &str, resource: &Resource) -> Result<(), Box<dyn Error>> {
    let lease: Label = "migrate".parse()?;
    let request = Request {
        holder: who.parse()?,
        term: Term::Attended { ttl: Duration::from_secs(15) },
        slots: 1,
        wait: Some(Duration::from_secs(60)),
        note: String::new(),
    };
    let guard = lease::acquire(&backend.leases, &lease, &request, &Env::system()).await?;
    let guard = guard.ok_or("nobody gave the lease back in a minute")?;

    // Work stops when the lease is lost: the deadline is before anybody else can be granted.
    tokio::select! {
        loss = guard.lost() => return Err(format!("lost: {loss:?}").into()),
        () = tokio::task::yield_now() => resource.write(guard.token(), who)?,
    }
    guard.release().await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let backend = servicekit::connect(&url).await?;
    let resource = Resource::default();
    tokio::try_join!(work(&backend, "worker-1", &resource), work(&backend, "worker-2", &resource),)?;
    match resource.write(Token(1), "somebody from yesterday") {
        Err(refused) => println!("refused: {refused}"),
        Ok(()) => return Err("a stale token must be refused".into()),
    }
    Ok(())
}
