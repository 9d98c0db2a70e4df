use servicekit::pki::Identity;

/// The text of an identity file: read, or refused without a word of it.
pub fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Identity::parse(text) {
        Ok(identity) => assert!(identity.recipient().starts_with("age1")),
        Err(error) => {
            let shown = format!("{error:?} {error}");
            let secrets = text.split_whitespace().filter(|word| word.starts_with("AGE-SECRET"));
            for secret in secrets.filter(|word| word.len() > "AGE-SECRET-KEY-1…;".len()) {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }
}
