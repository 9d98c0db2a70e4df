//! What tests on a real table share.

use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use servicekit_dynamo::Config;

/// The table `fleet` at a server of this host, which is made when it is missing.
pub(crate) fn config(endpoint: &str) -> Config {
    let rest = format!("//eu-central-1/fleet?endpoint=http://{endpoint}&create=true");
    let mut config = Config::parse(&rest).unwrap();
    config.sdk = Some(sdk());
    config
}

/// Somebody whom a server of this host knows.
pub(crate) fn sdk() -> SdkConfig {
    let credentials = Credentials::new("test", "hush", None, None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build()
}
