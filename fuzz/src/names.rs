use std::{fmt::Display, str::FromStr};

use servicekit::{Label, Name, Namespace, ServiceId, pki::San};

/// What parses as a name is within its limits, and parses again to the same.
pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(label) = parsed::<Label>(text, 63) {
        assert_eq!(Name::from(&label).as_str().parse::<Label>().ok(), Some(label));
    }
    if let Some(id) = parsed::<ServiceId>(text, 128) {
        assert_eq!(Name::from(&id).as_str().parse::<ServiceId>().ok(), Some(id));
    }
    parsed::<Namespace>(text, 63);
    parsed::<Name>(text, 255);
    parsed::<San>(text, 253);
}

fn parsed<T: FromStr + Display + PartialEq>(text: &str, longest: usize) -> Option<T> {
    let parsed: T = text.parse().ok()?;
    let shown = parsed.to_string();
    assert!((1..=longest).contains(&shown.len()), "{shown:?}");
    assert!(shown.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'), "{shown:?}");
    assert!(shown.parse().is_ok_and(|again: T| again == parsed), "{shown:?}");
    Some(parsed)
}
