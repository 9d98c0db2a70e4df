//! Where a record belongs: what it is called, so that no two share a name.

use aws_lc_rs::digest;
use servicekit_core::{Invalid, Label, Name, ServiceId};

use crate::seal::hex;

/// The name of the record of the CA.
pub(crate) fn ca() -> Result<Name, Invalid> {
    "ca".parse()
}

/// The name of the record of a certificate: `leaf:LABEL:ID`, or `long:LABEL:` and a digest of the id where that is too
/// long. A label has no colon, so that no two are the same.
pub(crate) fn leaf(label: &Label, id: &ServiceId) -> Result<Name, Invalid> {
    let name = format!("leaf:{label}:{id}");
    if name.len() <= LONGEST {
        return name.parse();
    }
    let digest = digest::digest(&digest::SHA256, id.as_str().as_bytes());
    // 160 of 256 bits, so that it fits with the longest label.
    format!("long:{label}:{}", hex(&digest.as_ref()[..20])).parse()
}

/// The name of the mark that goes with a record.
pub(crate) fn mark(record: &Name) -> Result<Name, Invalid> {
    format!("{MARK}{record}").parse()
}

const MARK: &str = "mark:";
/// What a name may have, with room for the mark.
const LONGEST: usize = 128 - MARK.len();

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_share_a_name_however_long() {
        let label = "l".repeat(63);
        let ids: Vec<String> = [1, 53, 54, 55, 127, 128].map(|length| "i".repeat(length)).into();
        let mut pairs = vec![("a", "b:c"), ("a", ":b"), ("a", "B"), ("a", "b"), ("a.b", "c")];
        pairs.extend(ids.iter().map(|id| (label.as_str(), id.as_str())));
        pairs.extend(ids.iter().map(|id| ("a", id.as_str())));
        let mut names = BTreeSet::new();
        for (label, id) in pairs {
            let name = leaf(&label.parse().unwrap(), &id.parse().unwrap()).unwrap();
            assert!(names.insert(mark(&name).unwrap()) && names.insert(name), "{label} {id}");
        }
        let web = leaf(&"web".parse().unwrap(), &"web-1".parse().unwrap()).unwrap();
        assert_eq!(mark(&web).unwrap().as_str(), "mark:leaf:web:web-1");
    }
}
