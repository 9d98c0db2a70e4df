//! The embedded store of servicekit: one SQLite file, shared safely by all processes of one host.
//!
//! Nothing to install and nothing to run: who opens the file first makes it. What it promises, and how, is in
//! `docs/backends/local.md`.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use servicekit_core::{Env, Namespace, store::Limits};
//! use servicekit_local::Local;
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("servicekit.db");
//! let local = Local::open(&path, Env::system()).await?;
//! let backend =
//!     servicekit_local::backend(local, Namespace::default(), Env::system(), Limits::default());
//! assert!(backend.registry.labels().await?.is_empty());
//! # Ok::<_, servicekit_core::Error>(()) }).unwrap();
//! ```

mod alarm;
mod connect;
mod doctor;
mod error;
mod host;
mod locks;
mod place;
mod queue;
mod records;
mod store;
mod watch;

use std::{env, path::PathBuf, sync::Arc};

use servicekit_core::{Backend, Env, Error, Kind, Namespace, Result, store::Limits};

pub use host::Host;
pub use store::Local;

/// Everything that servicekit needs, over one file, with a doctor that also examines the file.
#[must_use]
pub fn backend(local: Local, namespace: Namespace, env: Env, limits: Limits) -> Backend {
    let over = Backend::over("local", Arc::new(local.clone()), namespace, env, limits);
    Backend { doctor: Arc::new(doctor::FileDoctor::new(local, over.doctor, limits)), ..over }
}

/// Where the file is when nobody names another: `/var/lib/servicekit/servicekit.db` for root, else
/// `$XDG_STATE_HOME/servicekit/servicekit.db`, or `~/.local/state` in place of that variable.
///
/// # Errors
///
/// `Invalid` when neither variable names an absolute path.
pub fn default_path() -> Result<PathBuf> {
    let folder = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        state_folder(
            env::var_os("XDG_STATE_HOME").map(Into::into),
            env::var_os("HOME").map(Into::into),
        )?
    };
    Ok(folder.join("servicekit").join("servicekit.db"))
}

fn state_folder(state: Option<PathBuf>, home: Option<PathBuf>) -> Result<PathBuf> {
    // The standard wants a relative path to be ignored.
    let state = state.filter(|path| path.is_absolute());
    let home = home.filter(|path| path.is_absolute()).map(|home| home.join(".local/state"));
    state.or(home).ok_or_else(|| {
        let message = "there is no place for the store: neither XDG_STATE_HOME nor HOME is an absolute path; name a file";
        Error::new(Kind::Invalid, message).on("local")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder_is_where_the_standard_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(state_folder(path("/s"), path("/h")).unwrap(), PathBuf::from("/s"));
        for state in [None, path(""), path("relative")] {
            assert_eq!(state_folder(state, path("/h")).unwrap(), PathBuf::from("/h/.local/state"));
        }
        assert_eq!(state_folder(None, None).unwrap_err().kind(), Kind::Invalid);
        assert!(
            default_path().is_err()
                || default_path().unwrap().ends_with("servicekit/servicekit.db")
        );
    }
}
