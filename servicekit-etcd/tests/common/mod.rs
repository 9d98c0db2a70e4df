//! What tests on real clusters share.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses a part of it"
)]

use std::{fs, path::PathBuf};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, TlsOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use servicekit_testkit::server;
use tempfile::TempDir;

/// A CA, and what it signed: files that go with it.
pub struct Pki {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate and its key for 127.0.0.1, changed as wanted.
    pub fn issue(
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

    /// A key and its public half, as files.
    pub fn key_pair(&self) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let (private, public) =
            (self.folder.path().join("k.key"), self.folder.path().join("k.pub"));
        fs::write(&private, key.serialize_pem()).unwrap();
        fs::write(&public, key.public_key_pem()).unwrap();
        (private, public)
    }

    /// What a server needs.
    pub fn server(&self) -> server::Tls {
        let (cert, key) = self.issue("server", |_| {});
        server::Tls { ca: self.ca(), cert, key }
    }

    /// The parameters of an address that trusts this CA and shows a client's certificate.
    pub fn parameters(&self) -> String {
        let (cert, key) = self.issue("client", |_| {});
        format!("ca={}&cert={}&key={}", self.ca().display(), cert.display(), key.display())
    }

    /// The client's options for the same.
    pub fn options(&self) -> ConnectOptions {
        let (cert, key) = self.issue("admin", |_| {});
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(fs::read(self.ca()).unwrap()))
            .identity(Identity::from_pem(fs::read(cert).unwrap(), fs::read(key).unwrap()));
        ConnectOptions::new().with_tls(tls)
    }
}

/// Switches authentication on: `root` may do all, and `agent` with the password `hush` what is below `/servicekit/`.
pub async fn add_users(client: &Client) {
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

/// Which of these members leads, as soon as one does and all answer.
pub async fn leader(endpoints: &[&str]) -> usize {
    let clock = servicekit_core::Env::system().clock;
    loop {
        let asked = endpoints.iter().map(|endpoint| async move {
            let client = Client::connect([endpoint], None).await.ok()?;
            let status = client.maintenance_client().status().await.ok()?;
            Some(status.header()?.member_id() == status.leader())
        });
        let answers =
            futures_util::future::try_join_all(asked.map(|asked| async { asked.await.ok_or(()) }));
        let answers =
            servicekit_core::clock::timeout(&*clock, std::time::Duration::from_secs(3), answers)
                .await;
        if let Ok(Ok(answers)) = answers
            && let Some(leader) = answers.iter().position(|leads| *leads)
        {
            return leader;
        }
        clock.sleep(std::time::Duration::from_millis(100)).await;
    }
}
