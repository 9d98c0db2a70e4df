//! The contract of [`servicekit_core::store`], line by line.

mod life;
mod records;
mod watch;

use super::Case;

pub(super) const TABLES: &[&[Case]] = &[records::CASES, life::CASES, watch::CASES];
