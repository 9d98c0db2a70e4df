//! Issuing: what a CA and a certificate look like. No I/O; the time and the serial number come from the caller, keys from the
//! library that uses them.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use serde::{Deserialize, Serialize};
use servicekit_core::{Error, Kind, Label, Namespace, Random, Result, ServiceId, Timestamp};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{PrivateKey, San};

/// How long a CA lasts: ten years.
pub const CA_LIFETIME: Duration = Duration::from_secs(3650 * DAY);

/// How long a certificate lasts unless asked otherwise: 90 days. Who asks once a day, as a timer does, has a month to notice
/// that renewal fails.
pub const LIFETIME: Duration = Duration::from_secs(90 * DAY);

/// How many names a certificate may have, so that its record fits into every store.
pub const MOST_NAMES: usize = 100;

const DAY: u64 = 86_400;

/// How long before its issue a certificate begins, for hosts whose clock is a little behind.
const BACK_DATING: Duration = Duration::from_secs(5 * 60);

/// A certificate authority: the trust anchor and its key.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ca {
    /// When it was made.
    pub made: Timestamp,
    /// When it ends; nothing that it issues lasts longer.
    pub not_after: Timestamp,
    /// The self-signed certificate, PEM.
    pub cert: String,
    /// Its key.
    pub key: PrivateKey,
}

/// What a certificate is issued for.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "made by callers")]
pub struct Subject {
    /// The service.
    pub label: Label,
    /// The instance.
    pub service_id: ServiceId,
    /// What it vouches for, at least one.
    pub names: Vec<San>,
    /// How long it lasts, in whole seconds.
    pub lifetime: Duration,
}

/// What is known of a certificate, without its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Facts {
    /// The service.
    pub label: Label,
    /// The instance.
    pub service_id: ServiceId,
    /// What it vouches for, in order.
    pub names: Vec<San>,
    /// The serial number, in upper-case hexadecimal digits as OpenSSL shows it.
    pub serial: String,
    /// When it begins.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// From when on it is replaced by who asks: after two thirds of its time.
    pub renew_at: Timestamp,
    /// The lifetime that was asked for, in seconds; the next one gets the same.
    pub lifetime_seconds: u64,
}

/// A certificate with its key, as it was issued.
#[derive(Debug)]
#[non_exhaustive]
pub struct Issued {
    /// What is known of it.
    pub facts: Facts,
    /// The certificate, PEM.
    pub cert: String,
    /// Its key.
    pub key: PrivateKey,
}

/// A CA that is ready to sign.
#[derive(Debug)]
pub struct Issuer {
    made: Timestamp,
    not_after: Timestamp,
    issuer: rcgen::Issuer<'static, Signer>,
}

/// Makes a CA with a new key (P-256).
///
/// It may sign certificates and revocation lists, and no other CA.
///
/// # Errors
///
/// `Invalid` when the clock is beyond what a certificate can say; `Unexpected` when the library for cryptography fails.
pub fn ca(namespace: &Namespace, now: Timestamp, random: &Random) -> Result<Ca> {
    let made = whole_seconds(now);
    let not_after = made + CA_LIFETIME;
    let signer = Signer::generate()?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, namespace.as_str());
    // Two CAs of one namespace, as after a new beginning, must not be taken for each other.
    name.push(DnType::CommonName, format!("servicekit CA {}", &random.id()[..8]));
    let mut params = params(back_dated(made), not_after, &serial(random))?;
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let cert = params.self_signed(&signer).map_err(failed)?.pem();
    Ok(Ca { made, not_after, cert, key: signer.to_key() })
}

impl Issuer {
    /// Prepares a CA for signing.
    ///
    /// # Errors
    ///
    /// `Unexpected` when its certificate or key cannot be read.
    pub fn new(ca: &Ca) -> Result<Self> {
        let signer = KeyPair::from_pem(ca.key.expose()).map(|pair| Signer(Zeroizing::new(pair)));
        let issuer = rcgen::Issuer::from_ca_cert_pem(&ca.cert, signer.map_err(failed)?);
        Ok(Self { made: ca.made, not_after: ca.not_after, issuer: issuer.map_err(failed)? })
    }

    /// Issues a certificate with a new key (P-256), for servers and clients.
    ///
    /// It begins five minutes early, but not before the CA.
    ///
    /// # Errors
    ///
    /// `Invalid` without a name, when it would outlast the CA, and when that has ended; `Unexpected` when the library for
    /// cryptography fails.
    pub fn issue(&self, subject: &Subject, now: Timestamp, random: &Random) -> Result<Issued> {
        if subject.names.is_empty() {
            return Err(Error::new(Kind::Invalid, "a certificate needs a name"));
        }
        // A clock that is behind would make a certificate that ends before it begins.
        let now = whole_seconds(now).max(self.made);
        let not_after = now + subject.lifetime;
        if now >= self.not_after {
            let message = format!(
                "the CA ended at {}, and nothing can be issued in its name any more; to begin anew, take the records ca and \
                 mark:ca out of the store, as docs/certificates.md shows",
                self.not_after
            );
            return Err(Error::new(Kind::Invalid, message));
        }
        if not_after > self.not_after {
            let message = format!(
                "a certificate until {not_after} would outlast the CA, which ends at {}",
                self.not_after
            );
            return Err(Error::new(Kind::Invalid, message));
        }
        let not_before = back_dated(now).max(back_dated(self.made));
        let serial = serial(random);
        let signer = Signer::generate()?;
        let mut params = params(not_before, not_after, &serial)?;
        params.distinguished_name = distinguished_name(subject);
        params.subject_alt_names = subject.names.iter().map(general_name).collect::<Result<_>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&signer, &self.issuer).map_err(failed)?.pem();
        let facts = Facts {
            label: subject.label.clone(),
            service_id: subject.service_id.clone(),
            names: subject.names.clone(),
            serial: serial.iter().map(|byte| format!("{byte:02X}")).collect(),
            not_before,
            not_after,
            renew_at: now + subject.lifetime * 2 / 3,
            lifetime_seconds: subject.lifetime.as_secs(),
        };
        Ok(Issued { facts, cert, key: signer.to_key() })
    }

    /// How long a certificate that is issued now can last.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Duration {
        self.not_after.since(whole_seconds(now).max(self.made))
    }
}

/// The service and the instance, for people and logs. What a peer checks are the alternative names.
fn distinguished_name(subject: &Subject) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, subject.label.as_str());
    // The standard allows no more.
    if subject.service_id.as_str().len() <= 64 {
        name.push(DnType::CommonName, subject.service_id.as_str());
    }
    name
}

fn general_name(san: &San) -> Result<SanType> {
    match san.ip() {
        Some(address) => Ok(SanType::IpAddress(address)),
        None => san.to_string().try_into().map(SanType::DnsName).map_err(failed),
    }
}

fn params(not_before: Timestamp, not_after: Timestamp, serial: &[u8]) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.not_before = date(not_before)?;
    params.not_after = date(not_after)?;
    params.serial_number = Some(SerialNumber::from_slice(serial));
    Ok(params)
}

/// 126 random bits in sixteen bytes: positive, and never shorter.
fn serial(random: &Random) -> [u8; 16] {
    let drawn = u128::from_str_radix(&random.id(), 16).unwrap_or_default();
    (drawn >> 2 | 1 << 126).to_be_bytes()
}

fn whole_seconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_millis(moment.as_millis() / 1000 * 1000)
}

fn back_dated(moment: Timestamp) -> Timestamp {
    let early = u64::try_from(BACK_DATING.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_millis(moment.as_millis().saturating_sub(early))
}

fn date(moment: Timestamp) -> Result<OffsetDateTime> {
    let seconds = i64::try_from(moment.as_millis() / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| {
        let message = format!("this host's clock is wrong: no certificate can last until {moment}");
        Error::new(Kind::Invalid, message).because(error)
    })
}

fn failed(error: rcgen::Error) -> Error {
    Error::new(Kind::Unexpected, "the certificate cannot be made").because(error)
}

/// A key pair whose memory is wiped when it is dropped.
struct Signer(Zeroizing<KeyPair>);

impl Signer {
    fn generate() -> Result<Self> {
        Ok(Self(Zeroizing::new(KeyPair::generate().map_err(failed)?)))
    }

    fn to_key(&self) -> PrivateKey {
        PrivateKey::from_pem(self.0.serialize_pem())
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
