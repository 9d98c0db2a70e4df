//! The ways to ask a service whether it is well. Each ends within its time-out, whatever the service does.
//!
//! What a service says is untrusted: it is read up to [`MOST_BYTES`], and one printable line of it is kept.

mod exec;
mod http;
mod statuses;
mod tcp;

pub use exec::Exec;
pub use http::{Clients, Http, HttpOptions};
pub use statuses::Statuses;
pub use tcp::Tcp;

use servicekit_core::instance::REMEMBERED_OUTPUT;

/// How much a service may say to one probe; one that says more fails it.
pub const MOST_BYTES: usize = 1 << 20;

/// The first line of `text` with anything in it, fit for a terminal and for an instance's history.
fn first_line(text: &[u8]) -> String {
    printable(&String::from_utf8_lossy(text).lines().find_map(filled).unwrap_or_default())
}

/// The last line of `text` with anything in it, fit for a terminal and for an instance's history.
fn last_line(text: &[u8]) -> String {
    printable(&String::from_utf8_lossy(text).lines().rev().find_map(filled).unwrap_or_default())
}

fn filled(line: &str) -> Option<String> {
    let line = line.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn printable(line: &str) -> String {
    let cut = &line[..line.floor_char_boundary(REMEMBERED_OUTPUT)];
    cut.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_kept_and_it_cannot_steer_a_terminal() {
        assert_eq!(first_line(b"\r\n  \n red \x1b[31m\nmore"), "red \u{fffd}[31m");
        assert_eq!(last_line(b"one\ntwo\r\n\n"), "two");
        assert_eq!(first_line(b""), "");
        assert_eq!(first_line("ü".repeat(200).as_bytes()).len(), REMEMBERED_OUTPUT);
        assert_eq!(last_line(b"\xff"), "\u{fffd}");
    }
}
