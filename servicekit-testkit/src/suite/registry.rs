use super::Case;
pub(super) const TABLES: &[&[Case]] = &[];
