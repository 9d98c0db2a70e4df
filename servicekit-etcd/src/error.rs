//! What etcd, gRPC and the network say, as servicekit's one error: one table, and tests that hold it.

use std::{error::Error as StdError, time::Duration};

use etcd_client::Error as EtcdError;
use servicekit_core::{Effect, Error, Kind, Retry};
use tonic::{Code, Status};

/// The error for a request that failed.
pub(crate) fn explain(error: EtcdError, effect: Effect) -> Error {
    match error {
        EtcdError::GRpcStatus(status) => from_status(status, effect),
        EtcdError::TransportError(error) => {
            let message = format!("cannot reach the server{}", innermost(&error));
            Error::new(Kind::Unavailable, message).retry_as(Retry::Safe).because(error)
        }
        EtcdError::IoError(error) => {
            let message = "the connection failed";
            Error::new(Kind::Unavailable, message).retry_as(effect.unsettled()).because(error)
        }
        EtcdError::InvalidArgs(_) | EtcdError::InvalidUri(_) | EtcdError::EndpointError(_) => {
            Error::new(Kind::Invalid, "the address or the TLS configuration makes no sense")
                .because(error)
        }
        EtcdError::WatchError(_) | EtcdError::LeaseKeepAliveError(_) => {
            Error::new(Kind::Unavailable, "the stream was closed")
                .retry_as(effect.unsettled())
                .because(error)
        }
        other => Error::new(Kind::Unexpected, "etcd's client failed")
            .retry_as(effect.unsettled_or_never())
            .because(other),
    }
}

/// The error for a server that did not answer within `patience`.
pub(crate) fn silent(endpoint: &str, patience: Duration, effect: Effect) -> Error {
    Error::new(Kind::Timeout, format!("{endpoint}: no answer within {patience:?}"))
        .retry_as(effect.unsettled())
}

/// Whether another member of the cluster may do better.
pub(crate) fn is_of_this_member(error: &EtcdError) -> bool {
    match error {
        EtcdError::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::DeadlineExceeded
        ),
        EtcdError::TransportError(_) | EtcdError::IoError(_) | EtcdError::WatchError(_) => true,
        _ => false,
    }
}

/// Whether the login has ended, and not the right to log in. Such a request was not looked at any further.
pub(crate) fn is_of_this_login(error: &EtcdError) -> bool {
    matches!(error, EtcdError::GRpcStatus(status) if tells_of_an_ended_login(status.message()))
}

fn tells_of_an_ended_login(said: &str) -> bool {
    said.contains("invalid auth token") || said.contains("revision of auth store is old")
}

fn from_status(status: Status, effect: Effect) -> Error {
    use Retry::{Never, Safe};

    if let Some(error) = distrust(&status).or_else(|| before_sending(&status)) {
        return error;
    }
    let unsettled = effect.unsettled();
    let said = status.message();
    let (kind, retry, advice) = match status.code() {
        _ if said.contains("no leader") => {
            (Kind::Unavailable, Safe, "the cluster has no leader; look at its members")
        }
        _ if said.contains("database space exceeded") => (
            Kind::Unavailable,
            Never,
            "the cluster's space is used up: compact, defragment, then `etcdctl alarm disarm`",
        ),
        _ if said.contains("too many requests") => {
            (Kind::Throttled, Safe, "the cluster cannot keep up")
        }
        _ if tells_of_an_ended_login(said) => {
            (Kind::Unavailable, Safe, "the login has ended; logging in again")
        }
        _ if said.contains("compacted") => {
            (Kind::Unavailable, Safe, "the revision is no longer kept; reading again")
        }
        _ if said.contains("requested lease not found") => {
            (Kind::Unavailable, Safe, "the lease ended before its record was written")
        }
        _ if said.contains("authentication is not enabled") => {
            (Kind::Invalid, Never, "the cluster knows no users; leave the user out of the address")
        }
        _ if said.contains("authentication failed") || said.contains("user name is empty") => {
            (Kind::Denied, Never, "wrong user or password, or none given")
        }
        _ if said.contains("larger than max") || said.contains("too large") => {
            (Kind::Invalid, Never, "the record is too large for this cluster")
        }
        Code::Unauthenticated => (Kind::Denied, Never, "the cluster does not accept the login"),
        Code::PermissionDenied => (
            Kind::Denied,
            Never,
            "this user may not do that; its role needs read and write below the prefix",
        ),
        Code::Unimplemented => (Kind::Unsupported, Never, "this server has no v3 API of etcd"),
        Code::InvalidArgument | Code::OutOfRange => {
            (Kind::Invalid, Never, "the cluster refuses it")
        }
        Code::ResourceExhausted => (Kind::Throttled, Safe, "the cluster asks to slow down"),
        Code::DataLoss => (Kind::Unexpected, Never, "the cluster's data is damaged"),
        Code::DeadlineExceeded => (Kind::Timeout, unsettled, "the cluster did not answer in time"),
        Code::FailedPrecondition | Code::NotFound | Code::AlreadyExists => {
            (Kind::Unexpected, Never, "the cluster refuses it")
        }
        // The connection came to its end, and an answer may have been lost with it.
        _ if status.source().is_some() => {
            let advice = "if it never works: is that etcd, does it want TLS (etcds://), does it take the client \
                          certificate?";
            let message = format!("the connection failed{}; {advice}", innermost(&status));
            return Error::new(Kind::Unavailable, message).retry_as(unsettled);
        }
        _ => (Kind::Unavailable, unsettled, "the cluster cannot serve now"),
    };
    // The source would say the same in many more words.
    let message = match said.trim_start_matches("etcdserver: ") {
        "" => advice.to_owned(),
        said => format!("{advice} ({said})"),
    };
    Error::new(kind, message).retry_as(retry)
}

/// The error for a certificate that one side does not take; then nothing of the request was looked at.
///
/// In TLS 1.3 a server says so when the client believes that the handshake is over (RFC 8446, section 4.4.2.4), and
/// rustls tells by its words alone, since its type is hidden in an I/O error.
fn distrust(status: &Status) -> Option<Error> {
    let cause = innermost(status);
    let is_it = cause.contains("fatal alert") || cause.contains("invalid peer certificate");
    is_it.then(|| {
        let message = format!("the server and this client do not trust each other{cause}");
        Error::new(Kind::Denied, message)
    })
}

/// The error for a connection that never was: nothing was sent.
fn before_sending(status: &Status) -> Option<Error> {
    let mut causes = std::iter::successors(status.source(), |cause| (*cause).source());
    let connect = causes.find(|cause| cause.is::<tonic::ConnectError>())?;
    let message = format!("cannot reach the server{}", innermost(connect));
    Some(Error::new(Kind::Unavailable, message).retry_as(Retry::Safe))
}

/// The last cause in words, ready to be appended.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let cause = std::iter::successors(error.source(), |cause| (*cause).source()).last();
    cause.map(|cause| format!(": {cause}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_what_etcd_says() {
        use Kind::*;
        use Retry::{Never, Safe, Unknown};

        for (code, said, kind, read, write) in [
            (Code::Unavailable, "etcdserver: no leader", Unavailable, Safe, Safe),
            (Code::Unavailable, "etcdserver: leader changed", Unavailable, Safe, Unknown),
            (Code::Unavailable, "etcdserver: request timed out", Unavailable, Safe, Unknown),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                Unavailable,
                Safe,
                Unknown,
            ),
            (Code::Unavailable, "etcdserver: server stopped", Unavailable, Safe, Unknown),
            (Code::ResourceExhausted, "etcdserver: too many requests", Throttled, Safe, Safe),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                Unavailable,
                Never,
                Never,
            ),
            (Code::Unauthenticated, "etcdserver: invalid auth token", Unavailable, Safe, Safe),
            (
                Code::InvalidArgument,
                "etcdserver: revision of auth store is old",
                Unavailable,
                Safe,
                Safe,
            ),
            (Code::Unauthenticated, "", Denied, Never, Never),
            (Code::PermissionDenied, "etcdserver: permission denied", Denied, Never, Never),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                Denied,
                Never,
                Never,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", Denied, Never, Never),
            (
                Code::FailedPrecondition,
                "etcdserver: authentication is not enabled",
                Invalid,
                Never,
                Never,
            ),
            (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
                Unavailable,
                Safe,
                Safe,
            ),
            (Code::NotFound, "etcdserver: requested lease not found", Unavailable, Safe, Safe),
            (Code::InvalidArgument, "etcdserver: request is too large", Invalid, Never, Never),
            (
                Code::ResourceExhausted,
                "grpc: received message larger than max (9 vs. 8)",
                Invalid,
                Never,
                Never,
            ),
            (Code::Unimplemented, "", Unsupported, Never, Never),
            (Code::DeadlineExceeded, "context deadline exceeded", Timeout, Safe, Unknown),
            (Code::DataLoss, "etcdserver: corrupt cluster", Unexpected, Never, Never),
            (Code::Unknown, "transport error", Unavailable, Safe, Unknown),
            (Code::Cancelled, "", Unavailable, Safe, Unknown),
        ] {
            for (effect, retry) in [(Effect::Nothing, read), (Effect::Write, write)] {
                let error = explain(EtcdError::GRpcStatus(Status::new(code, said)), effect);
                assert_eq!((error.kind(), error.retry()), (kind, retry), "{said} {effect:?}");
            }
        }
    }

    #[test]
    fn another_member_is_asked_where_it_may_do_better() {
        let of =
            |code, said: &str| is_of_this_member(&EtcdError::GRpcStatus(Status::new(code, said)));
        assert!(of(Code::Unavailable, "etcdserver: no leader"));
        assert!(of(Code::Unavailable, "etcdserver: request timed out"));
        assert!(!of(Code::PermissionDenied, "etcdserver: permission denied"));
        assert!(!of(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"));
        assert!(!of(Code::NotFound, "etcdserver: requested lease not found"));
        assert!(!of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    }
}
