//! What DynamoDB, its SDK and the network say, as servicekit's one error: one table, and tests that hold it.

use std::{error::Error as StdError, time::Duration};

use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use servicekit_core::{Effect, Error, Kind, Retry};

/// The code of a condition that did not hold.
pub(crate) const CONDITION: &str = "ConditionalCheckFailedException";
/// What to look at where something else answers.
const NO_DYNAMODB: &str =
    "that is no DynamoDB, or one that is too old; look at what `endpoint` names, and at proxies";
/// What to do where nobody says who asks.
pub(crate) const NO_CREDENTIALS: &str = "no usable AWS credentials: set AWS_PROFILE or AWS_ACCESS_KEY_ID, name a ?profile=, or give \
                                         the host a role";
/// What to do then.
const MISSING_TABLE: &str = "there is no such table in this Region, or not yet; create it, or let servicekit do so with create=true";
/// The code of a table that is not there.
const NO_TABLE: &str = "ResourceNotFoundException";

/// The codes of credentials that may have been right once.
pub(crate) const EXPIRED: [&str; 5] = [
    "ExpiredTokenException",
    "ExpiredToken",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "InvalidAccessKeyId",
];

/// The error for a request that failed, or had no answer within `patience`.
pub(crate) fn explain<E>(
    error: SdkError<E, HttpResponse>,
    effect: Effect,
    patience: Duration,
) -> Error
where
    E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
{
    let failed = match &error {
        SdkError::ServiceError(answer) => {
            let (status, said) = (answer.raw().status().as_u16(), answer.err().meta());
            // The source would say the same in many more words.
            return from_answer(
                status,
                said.code().unwrap_or_default(),
                said.message().unwrap_or_default(),
                effect,
            );
        }
        // The time-out of a connection is one of these, too.
        SdkError::TimeoutError(_) => {
            let message = format!("no answer within {patience:?}");
            Error::new(Kind::Timeout, message).retry_as(effect.unsettled())
        }
        // It broke off within the answer, which says as little as none.
        SdkError::ResponseError(_) if says(&error, &["error reading a body", "message length"]) => {
            let message = format!("the connection failed{}", innermost(&error));
            Error::new(Kind::Unavailable, message).retry_as(effect.unsettled())
        }
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            let message = format!("the answer (HTTP {status}) is not one of DynamoDB's");
            let kind = if status >= 500 { Kind::Unavailable } else { Kind::Unexpected };
            Error::new(kind, message).retry_as(effect.unsettled())
        }
        SdkError::ConstructionFailure(_) => not_sent(&error).unwrap_or_else(|| {
            let message = format!("the request cannot be made{}", innermost(&error));
            Error::new(Kind::Invalid, message)
        }),
        SdkError::DispatchFailure(_) => not_sent(&error).unwrap_or_else(|| {
            let message = format!("the connection failed{}", innermost(&error));
            Error::new(Kind::Unavailable, message).retry_as(effect.unsettled())
        }),
        _ => Error::new(Kind::Unexpected, "the SDK failed").retry_as(effect.unsettled()),
    };
    failed.because(error)
}

/// Whether a look at the table failed because there is none.
pub(crate) fn is_missing_table(error: &Error) -> bool {
    error.message().starts_with(MISSING_TABLE)
}

/// The error for an answer that says no.
fn from_answer(status: u16, code: &str, said: &str, effect: Effect) -> Error {
    use Kind::*;
    use Retry::{Never, Safe};

    let (kind, retry, advice) = match code {
        CONDITION => (Conflict, Never, "the record is another one by now"),
        "ProvisionedThroughputExceededException" => {
            (Throttled, Safe, "the table, or one of its partitions, cannot keep up")
        }
        "RequestLimitExceeded" => (Throttled, Safe, "the account's limit is reached"),
        "ThrottlingException"
        | "Throttling"
        | "TooManyRequestsException"
        | "SlowDown"
        | "LimitExceededException"
        | "BandwidthLimitExceeded" => (Throttled, Safe, "DynamoDB asks to slow down"),
        "TransactionConflictException" | "TransactionInProgressException" => {
            (Throttled, Safe, "somebody else's transaction holds the record")
        }
        "ReplicatedWriteConflictException" => {
            (Throttled, Safe, "another Region writes the same record")
        }
        "ItemCollectionSizeLimitExceededException" => (
            Unavailable,
            Never,
            "a group is too large for an index of the table; remove that index",
        ),
        "ValidationException" if said.to_ascii_lowercase().contains("item size") => {
            (Invalid, Never, "the record is too large")
        }
        "ValidationException" if said.contains("schema") || said.contains("key element") => {
            (Invalid, Never, "the table has another shape")
        }
        "ValidationException" => (Invalid, Never, "DynamoDB refuses it"),
        NO_TABLE => (Unavailable, Never, MISSING_TABLE),
        "ResourceInUseException" | "TableInUseException" => {
            (Unavailable, Safe, "the table is being created, changed or deleted")
        }
        "AccessDeniedException" | "AccessDenied" => {
            (Denied, Never, "these credentials may not do that; see docs/backends/dynamodb.md")
        }
        "ExpiredTokenException" | "ExpiredToken" => (
            Unavailable,
            Safe,
            "the credentials have expired, and there are no others yet; log in again",
        ),
        // What the answer says of the time is known by now, and the next request is signed by it.
        "RequestTimeTooSkewed" | "RequestExpired" => {
            (Denied, Safe, "this host's clock is wrong; signing by DynamoDB's from now on")
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch"
            if said.contains("Signature expired") || said.contains("not yet current") =>
        {
            (Denied, Safe, "this host's clock is wrong; signing by DynamoDB's from now on")
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" | "AuthFailure"
            if said.contains("scoped to") || said.contains("valid region") =>
        {
            (Invalid, Never, "the Region of the address is not the one of the endpoint")
        }
        "UnrecognizedClientException" | "InvalidClientTokenId" | "InvalidAccessKeyId" => {
            (Denied, Never, "DynamoDB does not know these credentials; are they of this account?")
        }
        "InvalidSignatureException" | "SignatureDoesNotMatch" => {
            (Denied, Never, "the secret key does not belong to the access key")
        }
        "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "NotAuthorized" => (Denied, Never, "DynamoDB does not accept the credentials"),
        "OptInRequired" | "SubscriptionRequiredException" => {
            (Denied, Never, "the account is not set up for DynamoDB in this Region")
        }
        "UnknownOperationException" | "SerializationException" => (Unsupported, Never, NO_DYNAMODB),
        // DynamoDB gives each refusal a name.
        "" if matches!(status, 300..=399 | 404 | 405 | 501) => (Unsupported, Never, NO_DYNAMODB),
        "" if status < 400 => (Unexpected, effect.unsettled_or_never(), NO_DYNAMODB),
        _ if status >= 500 => (Unavailable, effect.unsettled(), "DynamoDB failed"),
        _ if status == 403 => (Denied, Never, "DynamoDB does not accept the credentials"),
        _ => (Unexpected, effect.unsettled_or_never(), "DynamoDB refuses it"),
    };
    let message = match (code, said) {
        (CONDITION, _) => advice.to_owned(),
        ("", "") => format!("{advice} (HTTP {status})"),
        (code, "") => format!("{advice} ({code})"),
        ("", said) => format!("{advice} ({said})"),
        (code, said) => format!("{advice} ({code}: {said})"),
    };
    Error::new(kind, message).retry_as(retry)
}

/// The error for a request that never left: there was no connection to send it on, or nobody to sign it.
fn not_sent(error: &(dyn StdError + 'static)) -> Option<Error> {
    let find = |words: &[&str]| says(error, words);
    if find(&["no identity resolver"]) {
        return Some(Error::new(Kind::Denied, NO_CREDENTIALS));
    }
    if find(&["invalid peer certificate"]) {
        let message = format!("the server's certificate is not trusted{}", innermost(error));
        return Some(Error::new(Kind::Denied, message));
    }
    if find(&["Missing Region", "missing signing region"]) {
        let message = "no Region: write dynamodb://REGION/TABLE, or set AWS_REGION";
        return Some(Error::new(Kind::Invalid, message));
    }
    if find(&["invalid value for field: `region`"]) {
        let message =
            "that is no Region: look at the address, AWS_REGION and the profile".to_owned();
        return Some(Error::new(Kind::Invalid, message));
    }
    // hyper-util tells it by these words alone.
    find(&["client error (Connect)", "HTTP connect timeout"]).then(|| {
        let message = format!("cannot reach the server{}", innermost(error));
        Error::new(Kind::Unavailable, message).retry_as(Retry::Safe)
    })
}

/// Whether an error or one of its causes has one of these words: some libraries tell them apart by nothing else.
fn says(error: &(dyn StdError + 'static), words: &[&str]) -> bool {
    let mut causes = std::iter::successors(Some(error), |cause| (*cause).source());
    causes.any(|cause| words.iter().any(|word| cause.to_string().contains(word)))
}

/// The last cause in words, ready to be appended.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> String {
    let cause = std::iter::successors(error.source(), |cause| (*cause).source()).last();
    cause.map(|cause| format!(": {cause}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_what_dynamodb_says() {
        use Kind::*;
        use Retry::{Never, Safe, Unknown};

        for (status, code, said, kind, read, write) in [
            (400, "ConditionalCheckFailedException", "", Conflict, Never, Never),
            (400, "ProvisionedThroughputExceededException", "", Throttled, Safe, Safe),
            (400, "RequestLimitExceeded", "", Throttled, Safe, Safe),
            (400, "ThrottlingException", "Rate of requests exceeds", Throttled, Safe, Safe),
            (400, "LimitExceededException", "", Throttled, Safe, Safe),
            (400, "TransactionConflictException", "", Throttled, Safe, Safe),
            (400, "ReplicatedWriteConflictException", "", Throttled, Safe, Safe),
            (400, "ItemCollectionSizeLimitExceededException", "", Unavailable, Never, Never),
            (
                400,
                "ValidationException",
                "Item size has exceeded the maximum",
                Invalid,
                Never,
                Never,
            ),
            (400, "ValidationException", "Item size to update has exceeded", Invalid, Never, Never),
            (
                400,
                "ValidationException",
                "The provided key element does not match the schema",
                Invalid,
                Never,
                Never,
            ),
            (400, "ValidationException", "Invalid UpdateExpression", Invalid, Never, Never),
            (400, "ResourceNotFoundException", "", Unavailable, Never, Never),
            (400, "ResourceInUseException", "", Unavailable, Safe, Safe),
            (400, "AccessDeniedException", "not authorized to perform", Denied, Never, Never),
            (400, "ExpiredTokenException", "", Unavailable, Safe, Safe),
            (400, "RequestTimeTooSkewed", "", Denied, Safe, Safe),
            (400, "InvalidSignatureException", "Signature expired: 2026", Denied, Safe, Safe),
            (400, "InvalidSignatureException", "Signature not yet current", Denied, Safe, Safe),
            (400, "InvalidSignatureException", "does not match", Denied, Never, Never),
            (
                400,
                "InvalidSignatureException",
                "Credential should be scoped to a valid region.",
                Invalid,
                Never,
                Never,
            ),
            (400, "UnrecognizedClientException", "", Denied, Never, Never),
            (400, "IncompleteSignatureException", "", Denied, Never, Never),
            (400, "MissingAuthenticationTokenException", "", Denied, Never, Never),
            (400, "OptInRequired", "", Denied, Never, Never),
            (400, "UnknownOperationException", "", Unsupported, Never, Never),
            (400, "SerializationException", "", Unsupported, Never, Never),
            (500, "InternalServerError", "", Unavailable, Safe, Unknown),
            (500, "InternalFailure", "", Unavailable, Safe, Unknown),
            (503, "ServiceUnavailable", "", Unavailable, Safe, Unknown),
            (502, "", "", Unavailable, Safe, Unknown),
            (403, "", "", Denied, Never, Never),
            (200, "", "", Unexpected, Never, Unknown),
            (301, "", "", Unsupported, Never, Never),
            (404, "", "", Unsupported, Never, Never),
            (501, "", "", Unsupported, Never, Never),
            (418, "Teapot", "", Unexpected, Never, Unknown),
        ] {
            for (effect, retry) in [(Effect::Nothing, read), (Effect::Write, write)] {
                let error = from_answer(status, code, said, effect);
                let found = (error.kind(), error.retry());
                assert_eq!(found, (kind, retry), "{status} {code} {said} {effect:?}");
            }
        }
    }
}
