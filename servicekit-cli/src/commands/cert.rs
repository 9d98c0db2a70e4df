//! `servicekit cert`: a certificate for a service, from a private CA.

mod folder;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use servicekit::{
    Label, ServiceId,
    pki::{Authority, Certificate, Facts, Identity, Request, San},
};
use zeroize::Zeroizing;

use self::folder::Folder;
use crate::{
    args,
    context::{Context, blocking},
    exit::Exit,
    format::Table,
    output::{self, Output},
    report::Failure,
};

/// Get a certificate for a service, from a CA of its own
///
/// The first call makes the CA and the certificate. Asking again returns the same, until two thirds of its lifetime are
/// over, or until other names or another lifetime are asked for. What is stored is sealed: only who has the identity can
/// open it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit cert --label web --x509 --service-id web-1 --out /etc/web/tls
  servicekit cert --label web --x509 --san web.example.com --san 10.0.0.1

The files of --out are links into a hidden folder, which is replaced as a whole. The key is for the user who runs this, mode 0600; \
changing its owner or mode does not last. For a service that runs as another user, run this as that user, or copy the key after \
each run: install -o web -m 0600 DIR/key.pem /run/web/. A folder with another instance's certificate is refused: empty it first.")]
pub(crate) struct Cert {
    /// The service
    #[arg(long)]
    label: Label,
    /// The kind of certificate; there is no other yet
    #[arg(long, required = true)]
    x509: bool,
    /// The instance [default: <label>-<hostname>]
    #[arg(long, value_name = "ID")]
    service_id: Option<ServiceId>,
    /// A name that it is for; may be repeated [default: the stored ones, at first the service id]
    #[arg(long, value_name = "DNS-or-IP")]
    san: Vec<San>,
    /// How long it lasts, in whole seconds [default: as long as before, at first 90d]
    #[arg(long, value_name = "DURATION", value_parser = args::positive)]
    ttl: Option<Duration>,
    /// Write key.pem, cert.pem, chain.pem and ca.pem into this folder, and print their paths
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to print it; text leaves the key out
    #[arg(long, short, value_enum, default_value_t = Output::Json)]
    output: Output,
}

/// What is printed.
#[derive(Serialize)]
struct Printed<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    facts: &'a Facts,
    key: &'a str,
    cert: &'a str,
    chain: &'a str,
    ca: &'a str,
}

impl Cert {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let Self { label, service_id, san, ttl, out, output, .. } = self;
        let service_id = match service_id {
            Some(id) => id,
            None => args::default_service_id(&label).map_err(Failure::Usage)?,
        };
        let mut request = Request::new(label, service_id).with_names(san);
        request.lifetime = ttl;

        // Before anything is issued: a folder that cannot be written is known now, and what is in it is older than what the
        // store is going to answer.
        let folder = match out {
            Some(path) => {
                let request = request.clone();
                Some(blocking(move || Folder::open(&path, &request)).await?)
            }
            None => None,
        };
        let backend = context.connect().await?;
        let identity = identity(context).await?;
        let (namespace, env) = (context.namespace().clone(), context.env.clone());
        let authority = Authority::new(backend.certs, namespace, identity, env);
        let certificate = authority.certificate(&request).await?;

        let printed = match folder {
            None => {
                let Certificate { facts, key, cert, chain, ca, .. } = &certificate;
                let key = key.expose();
                print(output, &Printed { r#type: "x509", facts, key, cert, chain, ca })?
            }
            Some(folder) => {
                let (certificate, folder) = blocking(move || {
                    folder.update(&certificate)?;
                    Ok((certificate, folder))
                })
                .await?;
                let [key, cert, chain, ca] = folder.paths();
                let facts = &certificate.facts;
                let (key, cert, chain, ca) = (&key, &cert, &chain, &ca);
                print(output, &Printed { r#type: "x509", facts, key, cert, chain, ca })?
            }
        };
        output::print(printed).await?;
        Ok(Exit::DONE)
    }
}

/// The identity that was named, or the one that belongs to the store.
async fn identity(context: &Context) -> Result<Identity, Failure> {
    match context.identity().map(Path::to_owned) {
        Some(file) => blocking(move || Ok(Identity::load(&file)?)).await,
        None => Ok(servicekit::identity(context.address(), &context.env).await?),
    }
}

fn print(output: Output, printed: &Printed<'_>) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match output {
        Output::Json => output::secret_json(printed),
        Output::Text => {
            let Facts { label, service_id, names, serial, .. } = printed.facts;
            let Facts { not_before, not_after, renew_at, .. } = printed.facts;
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let mut table = Table::new([
                "LABEL",
                "SERVICE ID",
                "NAMES",
                "SERIAL",
                "FROM",
                "UNTIL",
                "RENEWED AT",
            ]);
            table.row([
                label.to_string(),
                service_id.to_string(),
                names.join(","),
                serial.clone(),
                not_before.to_string(),
                not_after.to_string(),
                renew_at.to_string(),
            ]);
            Ok(Zeroizing::new(table.render().into_bytes()))
        }
    }
}
