//! Issuing certificates on one core, against bare rcgen with the same keys, names and extensions.
//!
//! ```sh
//! cargo run --release -p servicekit-benches --bin issue
//! ```
//!
//! Both draw a key, sign, and write PEM; the two take turns in rounds, so that a busy machine slows both. The figure is the
//! ratio of the rates.

use std::{error::Error, time::Duration};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use servicekit::{
    Clock as _, Namespace, Random,
    clock::SystemClock,
    pki::issue::{self, Issuer, LIFETIME, Subject},
};

const ROUNDS: usize = 200;
const CERTIFICATES: usize = 50;
const NAMES: [&str; 2] = ["web-1.example.com", "web.example.com"];

fn main() -> Result<(), Box<dyn Error>> {
    let (clock, random) = (SystemClock, Random::system());
    let ca = issue::ca(&Namespace::default(), clock.wall(), &random)?;
    let ours = Issuer::new(&ca)?;
    let key = KeyPair::from_pem(ca.key.expose())?;
    let theirs = rcgen::Issuer::from_ca_cert_pem(&ca.cert, key)?;
    let subject = Subject {
        label: "web".parse()?,
        service_id: "web-1".parse()?,
        names: NAMES.into_iter().map(str::parse).collect::<Result<_, _>>()?,
        lifetime: LIFETIME,
    };

    let (mut with, mut bare) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let began = clock.now();
        for _ in 0..CERTIFICATES {
            let issued = ours.issue(&subject, clock.wall(), &random)?;
            std::hint::black_box((issued.cert, issued.key));
        }
        let between = clock.now();
        for _ in 0..CERTIFICATES {
            std::hint::black_box(sign(&theirs)?);
        }
        with += between.since(began);
        bare += clock.now().since(between);
    }
    let certificates = (ROUNDS * CERTIFICATES) as f64;
    println!("issued:            {:8.0} a second", certificates / with.as_secs_f64());
    println!("signed with rcgen: {:8.0} a second", certificates / bare.as_secs_f64());
    println!("rate against bare: {:8.2}", bare.as_secs_f64() / with.as_secs_f64());
    Ok(())
}

fn sign(issuer: &rcgen::Issuer<'_, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}
