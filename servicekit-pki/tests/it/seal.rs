//! What is sealed is opened by its owner alone, and whatever is done to it is seen.

use age::secrecy::ExposeSecret as _;
use servicekit_core::Kind;
use servicekit_pki::{
    Identity,
    seal::{Problem, open, seal},
};

const DOCUMENT: &[u8] = br#"{"key":"secret"}"#;

/// The secret as age knows it, the identity, and the document sealed.
fn sealed() -> (age::x25519::Identity, Identity, String) {
    let secret = age::x25519::Identity::generate();
    let identity = Identity::parse(secret.to_string().expose_secret()).unwrap();
    let sealed = seal(&identity, DOCUMENT).unwrap();
    (secret, identity, sealed)
}

/// Seals a plaintext as anybody can who knows the recipient.
fn seal_to(identity: &Identity, plaintext: &str) -> Vec<u8> {
    let recipient: age::x25519::Recipient = identity.recipient().parse().unwrap();
    age::encrypt_and_armor(&recipient, plaintext.as_bytes()).unwrap().into_bytes()
}

#[test]
fn its_owner_opens_it_and_nobody_else() {
    let (_, identity, sealed) = sealed();
    assert!(!sealed.contains("secret"));
    assert_eq!(*open(&identity, sealed.as_bytes()).unwrap(), DOCUMENT);
    let other = Identity::generate().unwrap();
    assert_eq!(open(&other, sealed.as_bytes()).unwrap_err(), Problem::OpensNothing);
}

#[test]
fn the_same_document_never_looks_the_same() {
    let (_, identity, sealed) = sealed();
    assert_ne!(seal(&identity, DOCUMENT).unwrap(), sealed);
}

#[test]
fn more_than_one_line_cannot_be_sealed() {
    let (_, identity, _) = sealed();
    assert_eq!(seal(&identity, b"{\n}").unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_flipped_bit_is_seen_wherever_it_is() {
    let (_, identity, sealed) = sealed();
    for at in 0..sealed.len() {
        for bit in [0x01, 0x20, 0x80] {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] ^= bit;
            if let Ok(document) = open(&identity, &bytes) {
                // The armor has a few characters that mean nothing, such as its line ends.
                assert_eq!(*document, DOCUMENT, "byte {at}, bit {bit}");
            }
        }
    }
    let body = sealed.find("\n").unwrap() + 200;
    let mut bytes = sealed.into_bytes();
    bytes[body] = if bytes[body] == b'A' { b'B' } else { b'A' };
    assert!(open(&identity, &bytes).is_err());
}

#[test]
fn what_is_cut_off_is_seen_wherever_the_cut_is() {
    let (_, identity, sealed) = sealed();
    // Without the last line end it is still whole.
    for length in 0..sealed.trim_end().len() {
        assert!(open(&identity, &sealed.as_bytes()[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn what_others_sealed_to_the_recipient_is_forged() {
    let (secret, identity, genuine) = sealed();
    let mine = age::decrypt(&secret, genuine.as_bytes()).unwrap();
    let mine = String::from_utf8(mine).unwrap();
    // The MAC of another identity, another document under a genuine MAC, a longer MAC, and none.
    let (other, _, elsewhere) = sealed();
    let other = String::from_utf8(age::decrypt(&other, elsewhere.as_bytes()).unwrap()).unwrap();
    let changed = mine.replace("secret", "planted");
    let unsigned = format!("{}\n", String::from_utf8_lossy(DOCUMENT));
    let short = mine.replacen("{\"mac\":\"", "{\"mac\":\"0", 1);
    for forged in [&other, &changed, &unsigned, &short, "", "\n", "{}\n{}\n", "x\n{\"mac\":\"zz\"}"]
    {
        assert_ne!(forged, mine);
        let sealed = seal_to(&identity, forged);
        assert_eq!(open(&identity, &sealed).unwrap_err(), Problem::Forged, "{forged:?}");
    }
    assert!(open(&identity, &seal_to(&identity, &mine)).is_ok());
    assert!(open(&identity, genuine.as_bytes()).is_ok());
}

#[test]
fn what_is_no_sealed_record_is_told_from_what_is_damaged() {
    let (_, identity, sealed) = sealed();
    for bytes in [&b""[..], b"{}", &[0xff; 300]] {
        assert_eq!(open(&identity, bytes).unwrap_err(), Problem::NotSealed, "{bytes:?}");
    }
    let end = sealed.rfind("\n-----END").unwrap();
    // The last characters hold the end of the payload.
    let mut bytes = sealed.into_bytes();
    bytes[end - 8] = if bytes[end - 8] == b'A' { b'B' } else { b'A' };
    assert_eq!(open(&identity, &bytes).unwrap_err(), Problem::Damaged);
}

#[test]
fn a_passphrase_costs_no_work() {
    let (_, identity, _) = sealed();
    let passphrase = age::secrecy::SecretString::from("x".to_owned());
    let recipient = age::scrypt::Recipient::new(passphrase);
    let sealed = age::encrypt_and_armor(&recipient, b"x").unwrap();
    assert_eq!(open(&identity, sealed.as_bytes()).unwrap_err(), Problem::OpensNothing);
}
