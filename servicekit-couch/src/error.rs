//! What CouchDB and the network say, as servicekit's one error: one table, and tests that hold it.

use std::{error::Error as StdError, time::Duration};

use servicekit_core::{Effect, Error, Kind, Retry};

/// The beginning of the message for a database that is not there.
pub(crate) const NO_DATABASE: &str = "there is no such database";

/// The error for a request that had no answer within `patience`, or only a part of one.
pub(crate) fn explain(error: reqwest::Error, effect: Effect, patience: Duration) -> Error {
    // The address may name a user, and says nothing that the message does not.
    let error = error.without_url();
    let failed = if error.is_builder() || error.is_redirect() {
        Error::new(Kind::Invalid, "the request cannot be sent")
    } else if is_untrusted(&error) {
        let message = format!("the server's certificate is not trusted{}", innermost(&error));
        Error::new(Kind::Denied, message)
    } else if is_refused(&error) {
        let message = format!(
            "the server does not take this client{}; does it want a certificate (cert=, key=), or another one?",
            innermost(&error)
        );
        Error::new(Kind::Denied, message)
    } else if error.is_connect() {
        let message = format!("cannot reach the server{}", innermost(&error));
        Error::new(Kind::Unavailable, message).retry_as(Retry::Safe)
    } else if error.is_timeout() {
        let message = format!("no answer within {patience:?}");
        Error::new(Kind::Timeout, message).retry_as(effect.unsettled())
    } else {
        let message = format!("the connection failed{}", innermost(&error));
        Error::new(Kind::Unavailable, message).retry_as(effect.unsettled())
    };
    failed.because(error)
}

/// The error for an answer that is no success.
pub(crate) fn from_answer(status: u16, code: &str, reason: &str, effect: Effect) -> Error {
    use Kind::*;
    use Retry::{Never, Safe};

    let (kind, retry, advice) = match (status, code) {
        // So many nodes have not taken it that another may be told otherwise.
        (202, _) => {
            (Unavailable, effect.unsettled(), "too few nodes of the cluster have taken it so far")
        }
        (300..=399, _) => (Unsupported, Never, "the server points elsewhere; name that place"),
        (401, _) => (
            Denied,
            Never,
            "CouchDB does not accept the user or the password, or the address names no user",
        ),
        (403, _) if reason.contains("temporarily locked") => (
            Denied,
            Never,
            "CouchDB has locked this user out for some minutes: somebody at this address has sent too many wrong passwords",
        ),
        (403, _) => (Denied, Never, "this user may not do that"),
        (404, _) if is_missing_database(code, reason) => (Unavailable, Never, NO_DATABASE),
        (404, "not_found") => (NotFound, Never, "there is no such record"),
        (409, _) => (Conflict, Never, "the record is another one by now"),
        (413, _) => (Invalid, Never, "the record is too large"),
        (400 | 415, _) => (Invalid, Never, "CouchDB refuses it"),
        (404..=406 | 501, _) => (Unsupported, Never, "that is no CouchDB, or one that is too old"),
        (408, _) => (Timeout, effect.unsettled(), "the server waited too long for the request"),
        (412, _) => (Conflict, Never, "it is there already"),
        (429, _) => (Throttled, Safe, "CouchDB asks to slow down"),
        _ if status >= 500 => (Unavailable, effect.unsettled(), "CouchDB failed"),
        _ => (Unexpected, effect.unsettled(), "the answer makes no sense"),
    };
    let message = match kind {
        Conflict | NotFound => advice.to_owned(),
        _ if code.is_empty() => format!("{advice} (HTTP {status})"),
        _ => format!("{advice} (HTTP {status}, {code}: {reason})"),
    };
    Error::new(kind, message).retry_as(retry)
}

/// CouchDB tells a database that is missing from a document that is by words alone.
fn is_missing_database(code: &str, reason: &str) -> bool {
    let reason = reason.to_ascii_lowercase();
    code == "not_found" && (reason.starts_with("database does not exist") || reason == "no_db_file")
}

fn is_untrusted(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause| (*cause).source());
    causes.any(|cause| cause.to_string().contains("invalid peer certificate"))
}

/// Whether the server does not take the client's certificate, or wants one: then nothing of the request was looked at.
///
/// In TLS 1.3 it says so when the client believes that the handshake is over (RFC 8446, section 4.4.2.4), and rustls tells by
/// its words alone.
fn is_refused(error: &(dyn StdError + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause| (*cause).source());
    let alerts = ["Certificate", "UnknownCA", "AccessDenied", "HandshakeFailure"];
    causes.any(|cause| {
        let said = cause.to_string();
        said.contains("received fatal alert") && alerts.iter().any(|alert| said.contains(alert))
    })
}

/// The last cause in words, ready to be appended, with what it may come from.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let cause = std::iter::successors(error.source(), |cause| (*cause).source()).last();
    let Some(said) = cause.map(ToString::to_string) else { return String::new() };
    let question = if said.contains("invalid HTTP version") {
        "; does the server want TLS (couchdbs://)?"
    } else if said.contains("corrupt message") {
        "; is the server without TLS (couchdb://)?"
    } else {
        ""
    };
    format!(": {said}{question}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_what_couchdb_says() {
        use Kind::*;
        use Retry::{Never, Safe, Unknown};

        for (status, code, reason, kind, read, write) in [
            (202, "", "", Unavailable, Safe, Unknown),
            (301, "", "", Unsupported, Never, Never),
            (400, "bad_request", "invalid UTF-8 JSON", Invalid, Never, Never),
            (401, "unauthorized", "Name or password is incorrect.", Denied, Never, Never),
            (401, "unauthorized", "You are not a server admin.", Denied, Never, Never),
            (403, "forbidden", "not allowed by the design document", Denied, Never, Never),
            (403, "forbidden", "Account is temporarily locked due to", Denied, Never, Never),
            (404, "not_found", "missing", NotFound, Never, Never),
            (404, "not_found", "deleted", NotFound, Never, Never),
            (404, "not_found", "Database does not exist.", Unavailable, Never, Never),
            (404, "not_found", "no_db_file", Unavailable, Never, Never),
            (404, "", "", Unsupported, Never, Never),
            (405, "method_not_allowed", "", Unsupported, Never, Never),
            (408, "", "", Timeout, Safe, Unknown),
            (409, "conflict", "Document update conflict.", Conflict, Never, Never),
            (412, "file_exists", "", Conflict, Never, Never),
            (413, "document_too_large", "x", Invalid, Never, Never),
            (429, "too_many_requests", "", Throttled, Safe, Safe),
            (500, "timeout", "The request could not be processed", Unavailable, Safe, Unknown),
            (500, "internal_server_error", "", Unavailable, Safe, Unknown),
            (501, "", "", Unsupported, Never, Never),
            (502, "", "", Unavailable, Safe, Unknown),
            (503, "service_unavailable", "", Unavailable, Safe, Unknown),
            (504, "", "", Unavailable, Safe, Unknown),
            (200, "", "", Unexpected, Safe, Unknown),
            (418, "", "", Unexpected, Safe, Unknown),
        ] {
            for (effect, retry) in [(Effect::Nothing, read), (Effect::Write, write)] {
                let error = from_answer(status, code, reason, effect);
                let found = (error.kind(), error.retry());
                assert_eq!(found, (kind, retry), "{status} {code} {reason} {effect:?}");
            }
        }
    }
}
