//! A server and a client that know each other by certificates from the private CA: TLS in both directions, with rustls.
//!
//! ```sh
//! cargo run -p servicekit-examples --example tls
//! ```
//!
//! Both ask for their certificate with every start, and later whenever it may be due: asking is cheap, and returns the same
//! until two thirds of its lifetime are over.

use std::{error::Error, sync::Arc};

use servicekit::{
    Env, Namespace,
    connect::{Address, Options},
    pki::{Authority, Certificate, Request},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// What this process asks: its store, and the identity that opens what is in there.
async fn authority(address: &Address) -> Result<Authority> {
    let backend = servicekit::Connector::builtin().connect(address, Options::default()).await?;
    let env = Env::system();
    let identity = servicekit::identity(address, &env).await?;
    Ok(Authority::new(backend.certs, Namespace::default(), identity, env))
}

/// Whom to trust: the CA, and nobody else.
fn roots(certificate: &Certificate) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.ca.as_bytes())?)?;
    Ok(Arc::new(roots))
}

fn chain(certificate: &Certificate) -> Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    Ok(chain.collect::<std::result::Result<_, _>>()?)
}

fn key(certificate: &Certificate) -> Result<PrivateKeyDer<'static>> {
    Ok(PrivateKeyDer::from_pem_slice(certificate.key.expose().as_bytes())?)
}

/// Answers one client that has a certificate of the same CA.
async fn serve(listener: TcpListener, certificate: Certificate) -> Result<()> {
    let clients = WebPkiClientVerifier::builder(roots(&certificate)?).build()?;
    let config = ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain(&certificate)?, key(&certificate)?)?;
    let (stream, _) = listener.accept().await?;
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
    let mut question = [0; 4];
    stream.read_exact(&mut question).await?;
    stream.write_all(b"pong").await?;
    Ok(stream.shutdown().await?)
}

/// Asks a server that has a certificate of the same CA, for the name that it is asked by.
async fn ask(port: u16, name: &'static str, certificate: &Certificate) -> Result<String> {
    let config = ClientConfig::builder()
        .with_root_certificates(roots(certificate)?)
        .with_client_auth_cert(chain(certificate)?, key(certificate)?)?;
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from(name)?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"ping").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let url = format!("local:{}", folder.path().join("servicekit.db").display());
    let authority = authority(&url.parse()?).await?;

    let web = Request::new("web".parse()?, "web-1".parse()?);
    let web = web.with_names(vec!["web.internal".parse()?]);
    let server = authority.certificate(&web).await?;
    let client = authority.certificate(&Request::new("cron".parse()?, "cron-1".parse()?)).await?;
    println!("{:?} until {}", server.facts.names, server.facts.not_after);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(serve(listener, server.clone()));
    println!("the server says {}", ask(port, "web.internal", &client).await?);
    serving.await??;

    // Under a name that the certificate is not for, nobody talks.
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = tokio::spawn(serve(listener, server));
    match ask(port, "db.internal", &client).await {
        Err(refused) => println!("refused: {refused}"),
        Ok(answer) => return Err(format!("{answer} from a server of another name").into()),
    }
    match serving.await? {
        Err(_) => Ok(()),
        Ok(()) => Err("the server must not have been talked to".into()),
    }
}
