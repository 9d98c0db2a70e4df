use servicekit::connect::Address;

/// An address shows what it parsed from, less a password.
pub fn address(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(address) = text.parse::<Address>() else { return };
    let shown = address.to_string();
    if address.has_password() {
        assert_ne!(shown.split_once(':').map(|(_, rest)| rest), Some(address.rest()));
        assert!(shown.parse::<Address>().is_ok(), "what is shown is an address too");
    } else if text.contains(':') {
        assert_eq!(shown, text);
    }
    // The usual form, with a password that needs no escapes.
    if let Some((user, password)) = user_and_password(address.rest()) {
        let secret = format!(":{password}@");
        assert!(!shown.contains(&secret) || password == "***", "{user}: {shown}");
    }
}

fn user_and_password(rest: &str) -> Option<(&str, &str)> {
    let (authority, _) = rest.strip_prefix("//")?.split_once('/')?;
    let (userinfo, _) = authority.split_once('@')?;
    userinfo.split_once(':')
}
