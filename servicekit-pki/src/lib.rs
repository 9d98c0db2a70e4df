//! The private certificate authority of servicekit.
//!
//! An [`Authority`] issues certificates for services, and keeps them in a [`CertStore`](servicekit_core::CertStore) that never
//! sees a key: all that is stored is sealed to an [`Identity`]. How it works, what the records look like and what it
//! defends against is in `docs/certificates.md`.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use servicekit_core::{Backend, Env, Namespace, store::{Limits, Memory, Profile}};
//! use servicekit_pki::{Authority, Identity, Request};
//!
//! let (env, namespace) = (Env::system(), Namespace::default());
//! let store = std::sync::Arc::new(Memory::new(env.clone(), Profile::Server));
//! let backend = Backend::over("memory", store, namespace.clone(), env.clone(), Limits::default());
//!
//! let authority = Authority::new(backend.certs, namespace, Identity::generate()?, env);
//! let request = Request::new("web".parse()?, "web-1.example.com".parse()?);
//! let issued = authority.certificate(&request).await?;
//! assert_eq!(issued.facts.names[0].to_string(), "web-1.example.com");
//!
//! // Asking again returns the same, until it is due for renewal or the names asked for differ.
//! assert_eq!(authority.certificate(&request).await?.facts.serial, issued.facts.serial);
//! # Ok::<(), servicekit_core::Error>(()) }).unwrap();
//! ```
//!
//! Issuing ([`issue`]), sealing ([`seal`]) and storing are separate parts; the first two are pure.

mod authority;
mod identity;
pub mod issue;
mod key;
mod place;
mod san;
pub mod seal;
mod vault;

pub use authority::{Authority, Certificate, Request, has_ca};
pub use identity::Identity;
pub use issue::Facts;
pub use key::PrivateKey;
pub use san::San;
