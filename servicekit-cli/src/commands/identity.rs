//! `servicekit identity`: the key that opens certificates.

use std::path::PathBuf;

use serde::Serialize;
use servicekit::{Kind, identity_file, pki};

use crate::{
    context::{Context, blocking},
    exit::Exit,
    output::{self, Output},
    report::{Failure, chain},
};

/// Make or show an identity: the key that opens certificates
///
/// Certificates and their keys are sealed before they are stored. All who use them on a store need the same identity,
/// named with --identity or SERVICEKIT_IDENTITY. It is an age identity, so that `age -d -i FILE` opens them too.
#[derive(Debug, clap::Args)]
#[command(
    // A line about what is missing, as everywhere, and not the whole help.
    arg_required_else_help = false,
    after_help = "Examples:
  servicekit identity new --out /etc/servicekit/identity.txt
  servicekit identity show --identity /etc/servicekit/identity.txt"
)]
pub(crate) struct Identity {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    New(New),
    Show(Show),
}

/// Make a new identity, and print its recipient, which is public
///
/// The file can be read by its owner alone. One that is there is never overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit identity new --out /etc/servicekit/identity.txt")]
struct New {
    /// The file to make
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Print the recipient of an identity, which is public
///
/// Without --identity it is the one beside the store.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  servicekit identity show
  servicekit identity show --identity /etc/servicekit/identity.txt -o json")]
struct Show {
    /// How to print it
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Serialize)]
struct Facts<'a> {
    file: &'a str,
    recipient: &'a str,
}

impl Identity {
    pub(crate) async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let (identity, file, output) = match self.what {
            What::New(New { out, output }) => (new(&out, context)?, out, output),
            What::Show(Show { output }) => {
                let file = match context.identity() {
                    Some(file) => file.to_owned(),
                    None => identity_file(context.address())?,
                };
                let named = file.clone();
                (blocking(move || Ok(pki::Identity::load(&named)?)).await?, file, output)
            }
        };
        let recipient = identity.recipient();
        output::print(match output {
            Output::Text => recipient + "\n",
            Output::Json => {
                let facts = Facts { file: &file.to_string_lossy(), recipient: &recipient };
                output::json(&facts)?
            }
        })
        .await?;
        Ok(Exit::DONE)
    }
}

fn new(out: &std::path::Path, context: &Context) -> Result<pki::Identity, Failure> {
    let made = pki::Identity::create(out, context.env.clock.wall());
    made.map_err(|error| match error.kind() {
        Kind::Conflict => Failure::No(chain(&error)),
        Kind::Secret => Failure::Host(chain(&error)),
        _ => error.into(),
    })
}
