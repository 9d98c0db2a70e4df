//! What tests on real clusters share.

use std::{fs, path::PathBuf};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use servicekit_testkit::server;
use tempfile::TempDir;

/// A CA, and what it signed: files that go with it.
pub(crate) struct Pki {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate and its key for 127.0.0.1, changed as wanted.
    pub(crate) fn issue(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (PathBuf, PathBuf) {
        use std::os::unix::fs::PermissionsExt as _;

        let mut params = CertificateParams::new(["127.0.0.1".into()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.folder.path().join(format!("{name}.{end}"));
        fs::write(path("pem"), cert.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
        (path("pem"), path("key"))
    }

    /// What a server needs.
    pub(crate) fn server(&self) -> server::Tls {
        let (cert, key) = self.issue("server", |_| {});
        server::Tls { ca: self.ca(), cert, key }
    }

    /// The parameters of an address that trusts this CA and shows a client's certificate.
    pub(crate) fn parameters(&self) -> String {
        let (cert, key) = self.issue("client", |_| {});
        format!("ca={}&cert={}&key={}", self.ca().display(), cert.display(), key.display())
    }

    /// The client's options for the same.
    pub(crate) fn options(&self) -> ConnectOptions {
        let (cert, key) = self.issue("admin", |_| {});
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(fs::read(self.ca()).unwrap()))
            .identity(Identity::from_pem(fs::read(cert).unwrap(), fs::read(key).unwrap()));
        ConnectOptions::new().with_tls(tls)
    }
}

/// Switches authentication on: `root` may do all, and `agent` with the password `hush` what is below `/servicekit/`.
pub(crate) async fn add_users(client: &Client) {
    let mut auth = client.auth_client();
    auth.user_add("root", "hush", None).await.unwrap();
    auth.role_add("root").await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("agent", "hush", None).await.unwrap();
    auth.role_add("agent").await.unwrap();
    let all = Permission::read_write("/servicekit/").with_prefix();
    auth.role_grant_permission("agent", all).await.unwrap();
    auth.user_grant_role("agent", "agent").await.unwrap();
    auth.auth_enable().await.unwrap();
}
