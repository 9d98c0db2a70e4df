//! Which identity belongs to a store when nobody names one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use servicekit_core::{Env, Error, Kind, Result};
use servicekit_pki::{Identity, has_ca};

use crate::connect::{Address, Reach, namespaces};

/// The identity that seals the certificates in the store at `address`, when nobody names one.
///
/// A store of this host has it in a file beside its own, made where it is missing, exactly one, however many ask at once.
/// One in memory has one for as long as it lasts.
///
/// # Errors
///
/// `Secret` for a store that other hosts may reach too: each of them needs the same identity, so it has to be named; for
/// a file that is missing although there are certificates that it would open, in whatever namespace; and those of
/// [`Identity::load`]. Those of reaching the store.
pub async fn identity(address: &Address, env: &Env) -> Result<Identity> {
    let store = match address.reach()? {
        Reach::Process => return Identity::generate(),
        Reach::Host(store) => store,
        Reach::Shared => return Err(unnamed()),
    };
    let path = beside(&store);
    if !path.exists() {
        // Made before any CA by all: if there is a CA, it is there now, or was lost.
        if has_any_ca(&store, env).await? && !path.exists() {
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
        Reach::Shared => Err(unnamed()),
        Reach::Process => Err(Error::new(
            Kind::Secret,
            "a store in memory has an identity of its own, which ends with the process; name the file of another one \
             with --identity FILE or SERVICEKIT_IDENTITY",
        )),
    }
}

/// One identity opens all namespaces of a store, so that a CA in any of them was made with the one that is missing.
async fn has_any_ca(store: &Path, env: &Env) -> Result<bool> {
    for backend in namespaces(store, env).await? {
        if has_ca(&*backend.certs).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn unnamed() -> Error {
    Error::new(
        Kind::Secret,
        "no identity is named, and all who use this store need the same; make one with: servicekit identity new \
         --out FILE, and name it with --identity FILE or SERVICEKIT_IDENTITY",
    )
}

/// All processes have to agree on it, whatever links they reach the store by.
fn beside(store: &Path) -> PathBuf {
    let mut name = fs::canonicalize(store).unwrap_or_else(|_| store.into()).into_os_string();
    name.push(".identity");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn identity_of(url: &str) -> Result<Identity> {
        identity(&url.parse()?, &Env::system()).await
    }

    #[tokio::test]
    async fn a_shared_store_wants_one_to_be_named_and_tells_how_to_make_it() {
        for problem in [
            identity_of("mine://host").await.unwrap_err(),
            identity_file(&"mine://host".parse().unwrap()).unwrap_err(),
        ] {
            assert_eq!(problem.kind(), Kind::Secret);
            assert!(
                problem.to_string().contains("servicekit identity new --out FILE"),
                "{problem}"
            );
        }
    }

    #[tokio::test]
    async fn a_store_in_memory_has_one_and_no_file_for_it() {
        identity_of("memory:").await.unwrap();
        let problem = identity_file(&"memory:".parse().unwrap()).unwrap_err();
        assert_eq!(problem.kind(), Kind::Secret);
        assert!(problem.to_string().contains("ends with the process"), "{problem}");
    }

    #[cfg(feature = "local")]
    #[tokio::test]
    async fn a_store_of_this_host_has_one_beside_it_whatever_link_leads_there() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("store.db"), folder.path().join("link.db"));
        let url = |path: &Path| format!("local:{}", path.display());
        let made = identity_of(&url(&file)).await.unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let found = identity_of(&url(&link)).await.unwrap();
        assert_eq!(found.recipient(), made.recipient());
        assert!(folder.path().join("store.db.identity").exists());
    }

    #[cfg(feature = "local")]
    #[tokio::test]
    async fn one_that_was_lost_is_not_replaced_whatever_namespace_has_the_ca() {
        use crate::{
            Connector,
            connect::Options,
            pki::{Authority, Request},
        };

        let folder = tempfile::tempdir().unwrap();
        let url = format!("local:{}", folder.path().join("store.db").display());
        let (address, env) = (url.parse().unwrap(), Env::system());
        let options = Options { namespace: "other".parse().unwrap(), ..Options::default() };
        let backend = Connector::builtin().connect(&address, options.clone()).await.unwrap();
        let identity = identity(&address, &env).await.unwrap();
        let authority = Authority::new(backend.certs, options.namespace, identity, env);
        let request = Request::new("web".parse().unwrap(), "web-1".parse().unwrap());
        authority.certificate(&request).await.unwrap();
        let file = identity_file(&address).unwrap();
        fs::remove_file(&file).unwrap();
        let problem = identity_of(&url).await.unwrap_err();
        assert_eq!(problem.kind(), Kind::Secret);
        assert!(problem.to_string().contains("put"), "{problem}");
        assert!(!file.exists());
    }
}
