//! TLS with a CA of choice, and what is said when something about it is wrong.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use servicekit_core::{
    Env, Kind, Result, Retry,
    store::{Change, Limits, Store as _},
};
use servicekit_couch::{Config, Couch};
use servicekit_testkit::server::CouchDb;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::common::{key, put, tests};

fn open(rest: &str, encrypted: bool) -> Result<Couch> {
    Couch::new(Config::parse(rest, encrypted)?, Env::system(), Limits::default())
}

/// A CA, and its file.
fn authority(folder: &TempDir, name: &str) -> (PathBuf, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let path = folder.path().join(name);
    fs::write(&path, params.self_signed(&key).unwrap().pem()).unwrap();
    (path, Issuer::new(params, key))
}

/// The files of a client's certificate and its key.
fn client(folder: &TempDir, name: &str, issuer: &Issuer<'static, KeyPair>) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new([]).unwrap().signed_by(&key, issuer).unwrap();
    let path = |end: &str| folder.path().join(format!("{name}.{end}"));
    fs::write(path("pem"), cert.pem()).unwrap();
    fs::write(path("key"), key.serialize_pem()).unwrap();
    fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).unwrap();
    (path("pem"), path("key"))
}

/// Something that decrypts before a server, as is usual before CouchDB; it lets in whoever shows a certificate of `clients`, or
/// everybody where that is nobody.
async fn encrypted(
    server: String,
    name: &str,
    issuer: &Issuer<'static, KeyPair>,
    clients: Option<&Path>,
) -> String {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![CertificateDer::from(cert)], key).unwrap();
    // A proxy offers what CouchDB does not speak.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(stream).await.ok()?;
                let mut server = TcpStream::connect(&server).await.ok()?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
            });
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_of_choice_is_trusted_and_no_other() {
    let Some(server) = CouchDb::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let ((ca, issuer), (others, _)) = (authority(&folder, "ca"), authority(&folder, "others"));
    let place = encrypted(server.endpoint(), "127.0.0.1", &issuer, None).await;
    let rest = server.database_at(&place);
    let with = |rest: &str, ca: &PathBuf| format!("{rest}&ca={}", ca.display());

    let couch = open(&with(&rest, &ca), true).unwrap();
    couch.put(&put(key(&tests()))).await.unwrap();
    let mut changes = couch.watch(&tests());
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Snapshot(_)));
    let found = couch.get(&key(&tests())).await.unwrap().unwrap();
    couch.delete(&found.key, &found.version).await.unwrap();
    assert!(matches!(changes.next().await.unwrap().unwrap(), Change::Removed(_)));

    let elsewhere = encrypted(server.endpoint(), "db.example", &issuer, None).await;
    let elsewhere = rest.replace(&place, &elsewhere);
    for (what, rest) in [
        ("a CA that the server is not from", with(&rest, &others)),
        ("the CAs that the system trusts", rest.clone()),
        ("a certificate for another name", with(&elsewhere, &ca)),
    ] {
        let error = open(&rest, true).unwrap().get(&key(&tests())).await.unwrap_err();
        let (kind, retry) = (error.kind(), error.retry());
        assert_eq!((kind, retry), (Kind::Denied, Retry::Never), "{what}: {error:?}");
        assert!(error.message().contains("certificate is not trusted"), "{what}: {error:?}");
    }
    let plain = open(&rest, false).unwrap().get(&key(&tests())).await.unwrap_err();
    assert_eq!(plain.kind(), Kind::Unavailable, "{plain:?}");
    assert!(plain.message().contains("couchdbs://"), "{plain:?}");
    let rest = with(&rest.replace(&place, &server.endpoint()), &ca);
    let error = open(&rest, true).unwrap().get(&key(&tests())).await.unwrap_err();
    // Some wait for the rest of what they take for a request.
    assert!(error.kind() == Kind::Timeout || error.message().contains("couchdb://"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_shown_where_the_server_wants_one() {
    let Some(server) = CouchDb::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let ((ca, issuer), (_, others)) = (authority(&folder, "ca"), authority(&folder, "others"));
    let place = encrypted(server.endpoint(), "127.0.0.1", &issuer, Some(&ca)).await;
    let rest = format!("{}&ca={}", server.database_at(&place), ca.display());
    let showing = |(cert, key): &(PathBuf, PathBuf)| {
        format!("{rest}&cert={}&key={}", cert.display(), key.display())
    };

    let good = client(&folder, "good", &issuer);
    open(&showing(&good), true).unwrap().put(&put(key(&tests()))).await.unwrap();

    let foreign = client(&folder, "foreign", &others);
    for (what, rest) in [("no certificate", rest.clone()), ("another CA's", showing(&foreign))] {
        let error = open(&rest, true).unwrap().get(&key(&tests())).await.unwrap_err();
        if error.kind() == Kind::Unavailable {
            // The alert comes when the request is on its way, and may be lost with the connection.
            continue;
        }
        let (kind, retry) = (error.kind(), error.retry());
        assert_eq!((kind, retry), (Kind::Denied, Retry::Never), "{what}: {error:?}");
        assert!(error.message().contains("cert=, key="), "{what}: {error:?}");
    }

    let error = open(&showing(&(good.0.clone(), foreign.1.clone())), true).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
    assert!(error.message().contains("belong together"), "{error:?}");
    let error = open(&showing(&(good.0.clone(), good.0.clone())), true).unwrap_err();
    assert!(matches!(error.kind(), Kind::Invalid | Kind::Secret), "{error:?}");
    fs::set_permissions(&good.1, fs::Permissions::from_mode(0o644)).unwrap();
    let error = open(&showing(&good), true).unwrap_err();
    assert_eq!(error.kind(), Kind::Secret, "{error:?}");
    assert!(error.message().contains("chmod 600"), "{error:?}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "no PEM").unwrap();
    for path in ["/nowhere/ca.pem", empty.to_str().unwrap()] {
        let error = open(&format!("//db1/fleet?ca={path}"), true).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error:?}");
        assert!(error.to_string().contains(path), "{error:?}");
    }
    let error = open("//db1/fleet?ca=/ca.pem", false).unwrap_err();
    assert!(error.message().contains("couchdbs://"), "{error:?}");
}
