use std::{fmt, ops::RangeInclusive, str::FromStr};

use servicekit_core::Invalid;

/// The HTTP statuses that count as well: codes and ranges, such as `200-399` or `200,204,300-308`; `200-299` by default.
///
/// ```
/// use servicekit_agent::probe::Statuses;
/// let statuses: Statuses = "200,300-308".parse().unwrap();
/// assert!(statuses.contains(304) && !statuses.contains(204));
/// assert!("399-200".parse::<Statuses>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// Whether this code counts as well.
    #[must_use]
    pub fn contains(&self, code: u16) -> bool {
        self.0.iter().any(|range| range.contains(&code))
    }
}

impl Default for Statuses {
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

impl FromStr for Statuses {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, Invalid> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = code(first)?..=code(last)?;
    if range.is_empty() {
        return Err(Invalid::new("status range", text, "ends before it begins"));
    }
    Ok(range)
}

fn code(text: &str) -> Result<u16, Invalid> {
    let code = text.trim().parse().ok().filter(|code| (100..=599).contains(code));
    code.ok_or_else(|| Invalid::new("HTTP status", text, "must be a number from 100 to 599"))
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_shown() {
        let statuses: Statuses = "200, 204,300-308".parse().unwrap();
        assert_eq!(statuses.to_string(), "200,204,300-308");
        assert!(statuses.contains(204) && statuses.contains(308) && !statuses.contains(309));
        assert_eq!(Statuses::default().to_string(), "200-299");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, problem) in [
            ("", "from 100 to 599"),
            ("2xx", "from 100 to 599"),
            ("200,", "from 100 to 599"),
            ("200-1000", "from 100 to 599"),
            ("399-200", "ends before it begins"),
        ] {
            let message = text.parse::<Statuses>().unwrap_err().to_string();
            assert!(message.contains(problem), "{text}: {message}");
        }
    }
}
