//! What etcd, gRPC and the network say, as servicekit's one error: one table, and tests that hold it.

use std::{error::Error as StdError, time::Duration};

use etcd_client::Error as EtcdError;
use servicekit_core::{Error, Kind, Retry};
use tonic::{Code, Status};

/// Whether a request changes something: then an answer that was lost leaves it unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It only reads, or sending it twice does what sending it once does.
    Nothing,
    /// It may change a record.
    Write,
}

impl Effect {
    /// What to do after a request whose fate is not known.
    fn unsettled(self) -> Retry {
        match self {
            Self::Nothing => Retry::Safe,
            Self::Write => Retry::Unknown,
        }
    }
}

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
            .retry_as(if effect == Effect::Write { Retry::Unknown } else { Retry::Never })
            .because(other),
    }
}

/// The error for a server that did not answer within `patience`.
pub(crate) fn silent(endpoint: &str, patience: Duration, effect: Effect) -> Error {
    Error::new(Kind::Timeout, format!("{endpoint}: no answer within {patience:?}"))
        .retry_as(effect.unsettled())
}

/// Whether another member of the cluster may do better.
pub(crate) fn is_of_this_member(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unavailable | Kind::Timeout) && error.retry() != Retry::Never
}

fn from_status(status: Status, effect: Effect) -> Error {
    use Retry::{Never, Safe};

    if let Some(error) = before_sending(&status) {
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
        // Also what the connection makes of its end: an answer may have been lost with it.
        _ => (Kind::Unavailable, unsettled, "the cluster or the connection failed"),
    };
    let message = if said.is_empty() {
        format!("{advice}{}", innermost(&status))
    } else {
        format!("{advice} ({})", said.trim_start_matches("etcdserver: "))
    };
    Error::new(kind, message).retry_as(retry).because(status)
}

/// The error for a connection that never was: nothing was sent.
fn before_sending(status: &Status) -> Option<Error> {
    let causes = std::iter::successors(status.source(), |cause| (*cause).source());
    let mut causes = causes.skip_while(|cause| !cause.is::<tonic::ConnectError>());
    let connect = causes.next()?;
    let cause = innermost(connect);
    // rustls tells by its words alone what is wrong with a certificate, since its type is hidden in an I/O error.
    let error = if cause.contains("certificate") || cause.contains("alert") {
        let message = format!("the server and this client do not trust each other{cause}");
        Error::new(Kind::Denied, message)
    } else {
        let message = format!("cannot reach the server{cause}");
        Error::new(Kind::Unavailable, message).retry_as(Retry::Safe)
    };
    Some(error)
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
            (Code::Unauthenticated, "etcdserver: invalid auth token", Denied, Never, Never),
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
        let of = |code, said: &str| {
            let status = EtcdError::GRpcStatus(Status::new(code, said));
            is_of_this_member(&explain(status, Effect::Write))
        };
        assert!(of(Code::Unavailable, "etcdserver: no leader"));
        assert!(of(Code::Unavailable, "etcdserver: request timed out"));
        assert!(!of(Code::PermissionDenied, "etcdserver: permission denied"));
        assert!(!of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    }
}
