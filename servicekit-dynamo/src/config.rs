//! Where the table is: parsed once, from an address. Who asks is for AWS's own chain of credentials to say.

use aws_config::SdkConfig;
use percent_encoding::percent_decode_str;
use servicekit_core::{Error, Kind, Result};

/// The address of a table. It never holds a secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The table's name.
    pub table: String,
    /// Its Region; without one, that of the environment or of the profile.
    pub region: Option<String>,
    /// Another server than AWS's, as a URL.
    pub endpoint: Option<String>,
    /// The profile of AWS's configuration files to take credentials from.
    pub profile: Option<String>,
    /// Whether to make the table where it is missing.
    pub create: bool,
    /// The one Region that leases are used in, on a table with replicas in several.
    pub leases_region: Option<String>,
    /// What a program has loaded already, credentials above all; without it, what every AWS tool would load.
    pub sdk: Option<SdkConfig>,
}

const DEFAULT_TABLE: &str = "servicekit";

impl Config {
    /// Reads what follows the scheme: `//[region]/table[?endpoint=URL&profile=&create=true&leases-region=]`; nothing at all
    /// is the table `servicekit` in the Region that the environment names.
    ///
    /// # Errors
    ///
    /// `Invalid` for what makes no sense: a name that no table has, a parameter that nobody knows, a user or password
    /// (credentials are found as by every AWS tool, never in an address).
    pub fn parse(rest: &str) -> Result<Self> {
        let mut config = Self {
            table: DEFAULT_TABLE.into(),
            region: None,
            endpoint: None,
            profile: None,
            create: false,
            leases_region: None,
            sdk: None,
        };
        if rest.is_empty() {
            return Ok(config);
        }
        let Some(rest) = rest.strip_prefix("//") else {
            return Err(invalid("expected `//REGION/TABLE` after the scheme"));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        if place.contains('@') {
            let message = "no user or key belongs into the address: set AWS_PROFILE, or what else AWS's tools read";
            return Err(invalid(message));
        }
        let Some((region, table)) = place.split_once('/') else {
            let message = format!("{place:?} names no table: write //REGION/TABLE, or ///TABLE");
            return Err(invalid(message));
        };
        if !region.is_empty() {
            config.region = Some(region_of(region)?);
        }
        config.table = table_of(table)?;
        config.parameters(query)?;
        Ok(config)
    }

    fn parameters(&mut self, query: &str) -> Result<()> {
        let mut create = None;
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = decoded(value)?;
            let slot = match name {
                "endpoint" => &mut self.endpoint,
                "profile" => &mut self.profile,
                "create" => &mut create,
                "leases-region" => &mut self.leases_region,
                _ => {
                    let message = format!(
                        "unknown parameter {name:?}; known are endpoint, profile, create and leases-region"
                    );
                    return Err(invalid(message));
                }
            };
            if value.is_empty() || slot.replace(value).is_some() {
                return Err(invalid(format!("`{name}` needs one value")));
            }
        }
        self.create = match create.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => {
                return Err(invalid(format!("`create` is true or false, not {other:?}")));
            }
        };
        if let Some(endpoint) = &self.endpoint {
            let host =
                endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            if host.is_none_or(|host| host.is_empty() || host.contains('@')) {
                return Err(invalid("`endpoint` is a URL, such as http://localhost:8000"));
            }
        }
        if let Some(region) = &self.leases_region {
            region_of(region)?;
        }
        Ok(())
    }
}

fn region_of(text: &str) -> Result<String> {
    let fine = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if fine && text.len() <= 63 && text.contains('-') {
        return Ok(text.into());
    }
    Err(invalid(format!("{text:?} is not a Region, such as eu-central-1")))
}

fn table_of(text: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if let Some(odd) = text.chars().find(|c| !allowed(*c)) {
        let message =
            format!("{odd:?} in the table's name {text:?}; allowed are letters, digits and _ - .");
        return Err(invalid(message));
    }
    if !(3..=255).contains(&text.len()) {
        return Err(invalid(format!("{text:?}: a table's name has 3 to 255 characters")));
    }
    Ok(text.into())
}

fn decoded(text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let message = "a `%` with two hexadecimal digits after it is not UTF-8";
    decoded.map(Into::into).map_err(|_| invalid(message))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, message).on("dynamodb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_region_and_a_table() {
        let config = Config::parse("//eu-central-1/fleet").unwrap();
        assert_eq!((config.region.as_deref(), &*config.table), (Some("eu-central-1"), "fleet"));
        assert_eq!((config.endpoint, config.profile, config.create), (None, None, false));
        assert_eq!(Config::parse("///fleet").unwrap().region, None);
        assert_eq!(Config::parse("").unwrap().table, "servicekit");

        let all = "//x-1/fleet?endpoint=http%3A//127.0.0.1:8000&profile=ops&create=true&leases-region=eu-west-1";
        let config = Config::parse(all).unwrap();
        assert_eq!(config.endpoint.as_deref(), Some("http://127.0.0.1:8000"));
        assert_eq!((config.profile.as_deref(), config.create), (Some("ops"), true));
        assert_eq!(config.leases_region.as_deref(), Some("eu-west-1"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (rest, says) in [
            ("fleet", "//REGION/TABLE"),
            ("//fleet", "names no table"),
            ("//", "names no table"),
            ("///", "3 to 255"),
            ("///ab", "3 to 255"),
            ("///a/b", "'/'"),
            ("//Europe/fleet", "not a Region"),
            ("//key:hush@eu-west-1/fleet", "AWS_PROFILE"),
            ("///fleet?endpoint=localhost:8000", "URL"),
            ("///fleet?endpoint=http://u:hush@h", "URL"),
            ("///fleet?endpoint=", "one value"),
            ("///fleet?profile=a&profile=b", "one value"),
            ("///fleet?create=yes", "true or false"),
            ("///fleet?leases-region=x", "not a Region"),
            ("///fleet?verbose=1", "unknown parameter"),
            ("///fleet?profile=%ff", "UTF-8"),
        ] {
            let error = Config::parse(rest).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{rest}");
            assert!(error.message().contains(says), "{rest}: {error}");
            assert!(!format!("{error:?}").contains("hush"), "{error:?}");
        }
    }
}
