//! What is issued says what it has to, as another library reads it.

use std::{collections::BTreeSet, time::Duration};

use servicekit_core::{Kind, Namespace, Random, Timestamp};
use servicekit_pki::issue::{self, CA_LIFETIME, Ca, Issued, Issuer, LIFETIME, Subject};
use x509_parser::{
    pem::parse_x509_pem,
    prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate},
};

/// 2026-01-01, and half a second.
const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_500);
const DAY: Duration = Duration::from_secs(86_400);

fn ca() -> Ca {
    issue::ca(&Namespace::default(), NOW, &Random::seeded(1)).unwrap()
}

fn subject(id: &str, names: &[&str], lifetime: Duration) -> Subject {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    Subject { label: "web".parse().unwrap(), service_id: id.parse().unwrap(), names, lifetime }
}

fn issue_at(now: Timestamp, lifetime: Duration) -> servicekit_core::Result<Issued> {
    let subject = subject("web-1", &["web-1"], lifetime);
    Issuer::new(&ca()).unwrap().issue(&subject, now, &Random::seeded(2))
}

fn der(pem: &str) -> Vec<u8> {
    parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

fn seconds(moment: Timestamp) -> i64 {
    i64::try_from(moment.as_millis() / 1000).unwrap()
}

#[test]
fn a_ca_signs_certificates_and_no_other_ca() {
    let ca = ca();
    let der = der(&ca.cert);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    let constraints = cert.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = cert.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
    cert.verify_signature(None).unwrap();
    assert_eq!(cert.subject(), cert.issuer());
    let validity = cert.validity();
    assert_eq!(validity.not_before.timestamp(), seconds(NOW) - 300);
    assert_eq!(validity.not_after.timestamp(), seconds(NOW) + CA_LIFETIME.as_secs() as i64);
}

#[test]
fn a_certificate_serves_servers_and_clients_and_names_its_ca() {
    let ca = ca();
    let names = ["web.example.com", "*.example.com", "10.0.0.1", "2001:db8::1"];
    let subject = subject("web-1", &names, LIFETIME);
    let issued = Issuer::new(&ca).unwrap().issue(&subject, NOW, &Random::seeded(2)).unwrap();
    let (anchor, leaf) = (der(&ca.cert), der(&issued.cert));
    let (_, anchor) = X509Certificate::from_der(&anchor).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    leaf.verify_signature(Some(anchor.public_key())).unwrap();
    assert_eq!(leaf.issuer(), anchor.subject());
    assert_eq!(leaf.subject().to_string(), "O=web, CN=web-1");
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    let (mut own, mut above) = (None, None);
    for extension in leaf.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id.0),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                above = id.key_identifier.as_ref().map(|id| id.0);
            }
            _ => {}
        }
    }
    let of_the_ca =
        anchor.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
            _ => None,
        });
    assert!(own.is_some() && above.is_some() && own != above);
    assert_eq!(above, of_the_ca);
    let found = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(
        *found,
        [
            GeneralName::DNSName("web.example.com"),
            GeneralName::DNSName("*.example.com"),
            GeneralName::IPAddress(&[10, 0, 0, 1]),
            GeneralName::IPAddress(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ]
    );
    assert_eq!(leaf.raw_serial_as_string().replace(':', "").to_uppercase(), issued.facts.serial);
    assert_eq!(seconds(issued.facts.not_before), leaf.validity().not_before.timestamp());
    assert_eq!(seconds(issued.facts.not_after), leaf.validity().not_after.timestamp());
    assert!(issued.key.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
}

#[test]
fn a_certificate_begins_a_little_early_and_is_renewed_after_two_thirds() {
    let facts = issue_at(NOW, LIFETIME).unwrap().facts;
    let now = Timestamp::from_millis(NOW.as_millis() - 500);
    assert_eq!(now.since(facts.not_before), Duration::from_secs(300));
    assert_eq!(facts.not_after.since(now), LIFETIME);
    assert_eq!(facts.renew_at.since(now), LIFETIME * 2 / 3);
}

#[test]
fn nothing_outlasts_the_ca() {
    let last = NOW + (CA_LIFETIME - DAY);
    let end = ca().not_after;
    assert_eq!(issue_at(last, DAY).unwrap().facts.not_after, end);
    for (now, lifetime) in [(last, DAY + Duration::from_secs(1)), (NOW, CA_LIFETIME + DAY)] {
        let error = issue_at(now, lifetime).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("outlast the CA, which ends at"), "{error}");
    }
}

#[test]
fn a_ca_that_has_ended_says_how_to_begin_anew() {
    for (now, lifetime) in [
        (NOW + CA_LIFETIME, Duration::ZERO),
        (NOW + CA_LIFETIME + DAY, Duration::from_secs(1)),
        (Timestamp::from_millis(u64::MAX), DAY),
    ] {
        let error = issue_at(now, lifetime).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        for part in ["the CA ended at", "records ca and mark:ca", "docs/certificates.md"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[test]
fn a_clock_that_is_behind_the_ca_makes_no_certificate_that_begins_before_it() {
    let ca = ca();
    for behind in [Duration::from_secs(10), DAY * 365, DAY * 30_000] {
        let behind = u64::try_from(behind.as_millis()).unwrap();
        let now = Timestamp::from_millis(NOW.as_millis().saturating_sub(behind));
        let facts = issue_at(now, DAY).unwrap().facts;
        assert_eq!(facts.not_before, Timestamp::from_millis(ca.made.as_millis() - 300_000));
        assert_eq!(facts.not_after, ca.made + DAY);
    }
}

#[test]
fn a_certificate_without_a_name_is_refused() {
    let subject = subject("web-1", &[], DAY);
    let error = Issuer::new(&ca()).unwrap().issue(&subject, NOW, &Random::seeded(2)).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
}

#[test]
fn dates_beyond_2049_are_written_as_such() {
    let later = Timestamp::from_millis(2_524_608_000_000);
    let ca = issue::ca(&Namespace::default(), later, &Random::seeded(1)).unwrap();
    let der = der(&ca.cert);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(cert.validity().not_after.timestamp(), seconds(ca.not_after));
    assert!(cert.validity().not_after.is_generalizedtime());
}

#[test]
fn a_clock_beyond_all_dates_is_an_error() {
    for now in [253_402_300_799_000, u64::MAX] {
        let now = Timestamp::from_millis(now);
        let error = issue::ca(&Namespace::default(), now, &Random::seeded(1)).unwrap_err();
        assert!(error.to_string().contains("clock is wrong"), "{error}");
    }
}

#[test]
fn serial_numbers_are_positive_of_one_length_and_never_the_same() {
    let (ca, random) = (ca(), Random::seeded(3));
    let issuer = Issuer::new(&ca).unwrap();
    let subject = subject("web-1", &["web-1"], DAY);
    let mut serials = BTreeSet::new();
    for _ in 0..64 {
        let issued = issuer.issue(&subject, NOW, &random).unwrap();
        let der = der(&issued.cert);
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(cert.raw_serial().len(), 16);
        assert!(cert.raw_serial()[0] & 0x80 == 0);
        assert!(serials.insert(issued.facts.serial));
    }
}

#[test]
fn an_id_that_is_too_long_for_a_common_name_is_left_out() {
    let id = "i".repeat(65);
    let subject = subject(&id, &["a.example"], DAY);
    let issued = Issuer::new(&ca()).unwrap().issue(&subject, NOW, &Random::seeded(2)).unwrap();
    let der = der(&issued.cert);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(cert.subject().to_string(), "O=web");
}

#[test]
fn no_key_shows_in_debug() {
    let (ca, issued) = (ca(), issue_at(NOW, DAY).unwrap());
    let shown = format!("{ca:?}{issued:?}{:?}", Issuer::new(&ca).unwrap());
    for key in [&ca.key, &issued.key] {
        let body = key.expose().lines().nth(1).unwrap();
        assert!(!shown.contains(body));
    }
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
}
