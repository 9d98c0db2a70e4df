//! What is refused, and what is said then.

use std::time::Duration;

use servicekit_core::{
    Env, Error, Kind, Name, Namespace, Result, Retry, Timestamp,
    store::{Group, Keep, Key, Limits, Put, Reliable, Store as _},
};
use servicekit_dynamo::{Config, Dynamo};
use servicekit_testkit::server;

use crate::{
    common,
    stub::{DATE, Reply, Stub, TABLE, put},
};

fn open(config: Config) -> Dynamo {
    Dynamo::new(config, Env::system(), Limits::default())
}

fn without_making(endpoint: &str) -> Config {
    let mut config = common::config(endpoint);
    config.create = false;
    config
}

fn key() -> Key {
    Group::of(&Namespace::default(), "tests").key("a".parse::<Name>().unwrap())
}

/// A table that can be described, and says this to everything else.
async fn saying(reply: Reply) -> (Stub, Dynamo) {
    let stub = Stub::start(DATE, move |action, _| match action {
        "DescribeTable" => Reply::Say(200, TABLE.into()),
        _ => reply.clone(),
    });
    let stub = stub.await;
    let dynamo = open(without_making(&stub.endpoint));
    (stub, dynamo)
}

fn is_clean(error: &Error) -> &Error {
    assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    assert!(error.to_string().starts_with("dynamodb: "), "{error}");
    error
}

#[tokio::test]
async fn what_the_service_says_arrives() {
    use Kind::*;
    use Retry::{Never, Safe, Unknown};

    for (reply, kind, read, write, says) in [
        (
            Reply::error(400, "ProvisionedThroughputExceededException", "slow"),
            Throttled,
            Safe,
            Safe,
            "the table",
        ),
        (Reply::error(400, "RequestLimitExceeded", "x"), Throttled, Safe, Safe, "the account"),
        (
            Reply::error(400, "TransactionConflictException", "x"),
            Throttled,
            Safe,
            Safe,
            "transaction",
        ),
        (Reply::error(400, "ExpiredTokenException", "old"), Unavailable, Safe, Safe, "expired"),
        (
            Reply::error(400, "ResourceNotFoundException", "x"),
            Unavailable,
            Never,
            Never,
            "the table \"fleet\", in the Region \"eu-central-1\"",
        ),
        (Reply::error(500, "InternalServerError", "x"), Unavailable, Safe, Unknown, "failed"),
        (Reply::Say(503, "<html>".into()), Unavailable, Safe, Unknown, "(HTTP 503)"),
        (Reply::Say(200, "<html>".into()), Unexpected, Never, Unknown, "no DynamoDB"),
        (Reply::Say(501, "<html>".into()), Unsupported, Never, Never, "`endpoint`"),
        (Reply::Close, Unavailable, Safe, Unknown, "the connection failed"),
        (Reply::BreakOff, Unavailable, Safe, Unknown, "the connection failed"),
        (
            Reply::error(
                400,
                "InvalidSignatureException",
                "Credential should be scoped to a valid region.",
            ),
            Invalid,
            Never,
            Never,
            "the Region",
        ),
    ] {
        let (_stub, dynamo) = saying(reply).await;
        let error = dynamo.get(&key()).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, read), "{error:?}");
        let error = dynamo.put(&put(key())).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, write), "{error:?}");
        assert!(is_clean(&error).to_string().contains(says), "{error:?}");
    }
}

#[tokio::test]
async fn what_a_role_may_not_do_is_named() {
    for denied in ["DescribeTable", "GetItem", "Query", "UpdateItem", "DeleteItem"] {
        let said =
            format!("User: arn:aws:iam::1:user/x is not authorized to perform: dynamodb:{denied}");
        let stub = Stub::start(DATE, move |action, _| match action {
            _ if action == denied => Reply::error(400, "AccessDeniedException", &said),
            "DescribeTable" => Reply::Say(200, TABLE.into()),
            _ => Reply::Say(200, "{}".into()),
        });
        let stub = stub.await;
        let dynamo = open(without_making(&stub.endpoint));
        let version = servicekit_core::store::Version::new("1");
        let errors: Vec<Error> = [
            dynamo.get(&key()).await.map(drop),
            dynamo.list(&[key().group]).await.map(drop),
            dynamo.put(&put(key())).await.map(drop),
            dynamo.delete(&key(), &version).await,
        ]
        .into_iter()
        .filter_map(Result::err)
        .collect();
        assert!(!errors.is_empty(), "{denied}");
        for error in errors {
            assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
            assert!(error.to_string().contains(denied), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let (_stub, dynamo) = saying(Reply::Hang).await;
    let clock = Env::system().clock;
    let begun = clock.now();
    let error = dynamo.put(&put(key())).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Timeout, Retry::Unknown), "{error:?}");
    assert!(is_clean(&error).to_string().contains("no answer within 2.4s"), "{error:?}");
    assert!(clock.now().since(begun) < Duration::from_secs(20));

    let error = open(without_making("127.0.0.1:1")).put(&put(key())).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Unavailable, Retry::Safe), "{error:?}");
    assert!(is_clean(&error).to_string().contains("cannot reach the server"), "{error:?}");
}

/// The answer that refuses tells the time, and what is sent next is signed by it.
#[tokio::test]
async fn a_host_whose_clock_is_wrong_is_let_in_at_the_second_attempt() {
    let far = Env::system().clock.wall().as_millis() + 3 * 3_600_000;
    let date = http_date(Timestamp::from_millis(far));
    let stub = Stub::start(&date, |action, before| match (action, before) {
        ("DescribeTable", 0) => Reply::error(
            400,
            "InvalidSignatureException",
            "Signature expired: 1 is now earlier than 2",
        ),
        ("DescribeTable", _) => Reply::Say(200, TABLE.into()),
        _ => Reply::Say(200, "{}".into()),
    });
    let stub = stub.await;
    let dynamo = open(without_making(&stub.endpoint));
    let reliable =
        Reliable::new("dynamodb", std::sync::Arc::new(dynamo), Env::system(), Limits::default());
    assert_eq!(reliable.get(&key()).await.unwrap(), None);
    let signed: Vec<_> =
        stub.asked().iter().map(|asked| asked.headers["x-amz-date"].clone()).collect();
    assert!(signed[1] > signed[0] && signed[1][..13] != signed[0][..13], "{signed:?}");
}

fn http_date(at: Timestamp) -> String {
    let at = i64::try_from(at.as_millis()).unwrap();
    let at = aws_smithy_types::DateTime::from_millis(at);
    at.fmt(aws_smithy_types::date_time::Format::HttpDate).unwrap()
}

/// A crowd that is told to slow down does, on a table that is on its knees already.
#[tokio::test]
async fn throttling_backs_off() {
    let (stub, dynamo) = saying(Reply::error(400, "ThrottlingException", "slow")).await;
    let reliable =
        Reliable::new("dynamodb", std::sync::Arc::new(dynamo), Env::system(), Limits::default());
    let error = reliable.get(&key()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Throttled, Retry::Exhausted), "{error:?}");
    let asked = stub.asked().iter().filter(|asked| asked.action == "GetItem").count();
    assert!((4..=9).contains(&asked), "{asked} requests in eight seconds");
}

#[tokio::test]
async fn a_table_that_does_not_fit_is_refused_and_the_difference_shown() {
    let described = |from: &str, to: &str| Reply::Say(200, TABLE.replace(from, to));
    let other_key = described(r#""AttributeName":"group""#, r#""AttributeName":"pk""#);
    let numbers = described(r#""name","AttributeType":"S""#, r#""name","AttributeType":"N""#);
    for (reply, kind, retry, says) in [
        (
            other_key,
            Kind::Unsupported,
            Retry::Never,
            "its key is (pk S HASH, name S RANGE), not (group S HASH",
        ),
        (numbers, Kind::Unsupported, Retry::Never, "name N RANGE"),
        (described("ACTIVE", "CREATING"), Kind::Unavailable, Retry::Safe, "being made"),
        (described("ACTIVE", "DELETING"), Kind::Unavailable, Retry::Safe, "being deleted"),
        (
            Reply::error(400, "ResourceNotFoundException", "x"),
            Kind::Unavailable,
            Retry::Never,
            "create=true",
        ),
        (
            Reply::error(400, "UnrecognizedClientException", "The security token is invalid"),
            Kind::Denied,
            Retry::Never,
            "does not know these credentials",
        ),
    ] {
        let stub = Stub::start(DATE, move |_, _| reply.clone()).await;
        let dynamo = open(without_making(&stub.endpoint));
        let error = dynamo.get(&key()).await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, retry), "{error:?}");
        assert!(is_clean(&error).to_string().contains(says), "{error:?}");
    }
}

#[tokio::test]
async fn replicas_refuse_leases_and_certificates_unless_this_is_the_one_region() {
    let replicas = r#""Replicas":[{"RegionName":"us-east-1"}],"TableStatus""#;
    let table = TABLE.replace(r#""TableStatus""#, replicas);
    for (named, says) in [
        (None, Some("leases-region=")),
        (Some("us-east-1"), Some("written in us-east-1 alone; this is eu-central-1")),
        (Some("eu-central-1"), None),
    ] {
        let table = table.clone();
        let stub = Stub::start(DATE, move |action, _| match action {
            "DescribeTable" => Reply::Say(200, table.clone()),
            _ => Reply::Say(200, "{}".into()),
        });
        let stub = stub.await;
        let mut config = without_making(&stub.endpoint);
        config.leases_region = named.map(str::to_owned);
        let dynamo = open(config);
        dynamo.put(&put(key())).await.unwrap();
        let namespace = Namespace::default();
        let lease = Group::scoped(&namespace, "lease", &"x".parse().unwrap());
        for group in [lease, Group::of(&namespace, "certs")] {
            let key = group.key("head".parse::<Name>().unwrap());
            assert_eq!(dynamo.get(&key).await.unwrap(), None, "to read is safe");
            let put = dynamo.put(&put(key)).await;
            match says {
                None => drop(put.unwrap()),
                Some(says) => {
                    let error = put.unwrap_err();
                    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
                    assert!(error.to_string().contains(says), "{error:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn without_credentials_or_a_region_it_says_what_to_do() {
    let stub = Stub::start(DATE, |_, _| Reply::Say(200, TABLE.into())).await;
    let mut config = without_making(&stub.endpoint);
    config.sdk = Some(
        aws_config::SdkConfig::builder()
            .behavior_version(aws_config::BehaviorVersion::latest())
            .build(),
    );
    let error = open(config).get(&key()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Denied, Retry::Never), "{error:?}");
    assert!(is_clean(&error).to_string().contains("AWS_PROFILE"), "{error:?}");

    let mut config = without_making(&stub.endpoint);
    config.region = None;
    let error = open(config).get(&key()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (Kind::Invalid, Retry::Never), "{error:?}");
    assert!(is_clean(&error).to_string().contains("AWS_REGION"), "{error:?}");
}

/// A server that tells no time is used by this host's clock.
#[tokio::test]
async fn a_server_without_a_clock_can_be_used() {
    let Some(server) = server::DynamoDb::start() else { return };
    let dynamo = open(common::config(&server.endpoint_without_clock()));
    dynamo.make_table().await.unwrap();
    let put = Put { keep: Keep::Ephemeral(Duration::from_secs(60)), ..put(key()) };
    dynamo.put(&put).await.unwrap();
    let record = dynamo.get(&key()).await.unwrap().unwrap();
    assert!(!record.is_over());
}
