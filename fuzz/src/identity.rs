use servicekit::pki::Identity;

/// The text of an identity file: read, or refused without a word of it.
pub fn identity(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Identity::parse(text) {
        Ok(identity) => assert!(identity.recipient().starts_with("age1")),
        Err(error) => {
            let shown = format!("{error:?} {error}");
            assert!(text.len() < 16 || !shown.contains(text), "{shown}");
        }
    }
}
