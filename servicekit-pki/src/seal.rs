//! Sealing: bytes that only the owner of an identity can have written, and only they can read.
//!
//! A sealed document is an armored age file whose plaintext is two lines: the document, and `{"mac":"…"}`, the hexadecimal
//! HMAC-SHA-256 of the first line under a key that is derived from the identity's secret. The stock `age -d` opens it.

use std::io::Read as _;

use age::DecryptError;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use servicekit_core::{Error, Kind, Result};
use zeroize::Zeroizing;

use crate::Identity;

/// Why something sealed cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is no age file at all.
    #[error("is no sealed record, or is damaged")]
    NotSealed,
    /// It is an age file for another identity, or its header is damaged.
    #[error("is sealed to another identity, or is damaged")]
    OpensNothing,
    /// It was sealed to this identity, and something is missing from it or changed in it.
    #[error("is damaged or cut off")]
    Damaged,
    /// Somebody who knows only the recipient has written it, or it has no MAC.
    #[error("is forged: it was not written with the identity that it is sealed to")]
    Forged,
}

/// What every sealed document begins with.
const BEGIN: &[u8] = b"-----BEGIN AGE ENCRYPTED FILE-----";

#[derive(Serialize, Deserialize)]
struct Signature {
    mac: String,
}

/// Seals a document, which must be one line.
///
/// # Errors
///
/// `Invalid` when the document has more than one line; `Unexpected` when the library for encryption fails.
pub fn seal(identity: &Identity, document: &[u8]) -> Result<String> {
    if document.contains(&b'\n') {
        return Err(Error::new(Kind::Invalid, "what is sealed must be one line"));
    }
    let failed = |message: &str| Error::new(Kind::Unexpected, message.to_owned());
    let mac = hex(hmac::sign(&identity.signer, document).as_ref());
    let signature = serde_json::to_vec(&Signature { mac });
    let signature = signature.map_err(|error| failed("cannot be signed").because(error))?;
    let mut plaintext = Zeroizing::new(Vec::with_capacity(document.len() + signature.len() + 2));
    plaintext.extend_from_slice(document);
    plaintext.push(b'\n');
    plaintext.extend_from_slice(&signature);
    plaintext.push(b'\n');
    age::encrypt_and_armor(&identity.age.to_public(), &plaintext)
        .map_err(|_| failed("cannot be encrypted"))
}

/// Opens what [`seal`] has sealed.
///
/// # Errors
///
/// What is wrong with it. Nothing of the content is in the error.
pub fn open(identity: &Identity, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Problem> {
    if !sealed.starts_with(BEGIN) {
        return Err(Problem::NotSealed);
    }
    let reader = age::armor::ArmoredReader::new(sealed);
    let decryptor = age::Decryptor::new_buffered(reader).map_err(problem)?;
    let identities = std::iter::once(&identity.age as &dyn age::Identity);
    let mut reader = decryptor.decrypt(identities).map_err(problem)?;
    // The plaintext is shorter than its armor, so that the buffer never grows and leaves a copy behind.
    let mut plaintext = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader.read_to_end(&mut plaintext).map_err(|_| Problem::Damaged)?;
    let length = verify(identity, &plaintext)?.len();
    plaintext.truncate(length);
    Ok(plaintext)
}

/// The document in a plaintext, if its MAC is right.
fn verify<'a>(identity: &Identity, plaintext: &'a [u8]) -> Result<&'a [u8], Problem> {
    let at = plaintext.iter().position(|byte| *byte == b'\n').ok_or(Problem::Forged)?;
    let (document, signature) = plaintext.split_at(at);
    let Signature { mac } = serde_json::from_slice(signature).map_err(|_| Problem::Forged)?;
    let mac = unhex(&mac).ok_or(Problem::Forged)?;
    hmac::verify(&identity.signer, document, &mac).map_err(|_| Problem::Forged)?;
    Ok(document)
}

fn problem(error: DecryptError) -> Problem {
    match error {
        DecryptError::NoMatchingKeys => Problem::OpensNothing,
        _ => Problem::Damaged,
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<_>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
}
