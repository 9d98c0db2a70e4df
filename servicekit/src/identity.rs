//! Which identity belongs to a store when nobody names one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use servicekit_core::{Backend, Env, Error, Kind, Result};
use servicekit_pki::{Identity, has_ca};

use crate::connect::{Address, Reach};

/// The identity that seals the certificates in the store at `address`, when nobody names one.
///
/// A store of this host has it in a file beside its own, made where it is missing, exactly one, however many ask at once.
/// One in memory has one for as long as it lasts.
///
/// # Errors
///
/// `Secret` for a store that other hosts may reach too: each of them needs the same identity, so it has to be named; for
/// a file that is missing although there are certificates that it would open; and those of [`Identity::load`]. Those of
/// reaching the store.
pub async fn identity(address: &Address, backend: &Backend, env: &Env) -> Result<Identity> {
    if address.reach()? == Reach::Process {
        return Identity::generate();
    }
    let path = identity_file(address)?;
    if !path.exists() {
        // Made before the CA by all: if there is a CA, it is there now, or was lost.
        if has_ca(&*backend.certs).await? && !path.exists() {
            let message = format!(
                "there are certificates in the store, and the identity that opens them is missing: put {} back, or name \
                 the file that has it (--identity)",
                path.display()
            );
            return Err(Error::new(Kind::Secret, message));
        }
        match Identity::create(&path, env.clock.wall()) {
            Err(error) if error.kind() == Kind::Conflict => {}
            made => return made,
        }
    }
    Identity::load(&path)
}

/// The identity file beside the store at `address`, whether it is there or not.
///
/// # Errors
///
/// `Secret` when the store has no place for one.
pub fn identity_file(address: &Address) -> Result<PathBuf> {
    match address.reach()? {
        Reach::Host(store) => Ok(beside(&store)),
        Reach::Process | Reach::Shared => Err(Error::new(
            Kind::Secret,
            "no identity is named, and all who use this store need the same; make one with: servicekit identity new \
             --out FILE, and name it with --identity FILE or SERVICEKIT_IDENTITY",
        )),
    }
}

/// All processes have to agree on it, whatever links they reach the store by.
fn beside(store: &Path) -> PathBuf {
    let mut name = fs::canonicalize(store).unwrap_or_else(|_| store.into()).into_os_string();
    name.push(".identity");
    name.into()
}
