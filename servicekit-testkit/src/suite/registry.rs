//! The promises of [`servicekit_core::Registry`].

mod follow;
mod instances;
mod node;
mod sessions;
mod takeover;
mod workload;

use super::Case;

pub(super) const TABLES: &[&[Case]] =
    &[instances::CASES, sessions::CASES, takeover::CASES, follow::CASES, workload::CASES];
