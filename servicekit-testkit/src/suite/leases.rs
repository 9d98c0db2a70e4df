//! The promises of [`servicekit_core::LeaseProvider`] and of [`servicekit_core::lease::Guard`].

mod budget;
mod contender;
mod doubt;
mod evict;
mod expiry;
mod grant;
mod guard;
mod queue;
mod token;
mod unattended;
mod workload;

use super::Case;

pub(super) const TABLES: &[&[Case]] = &[
    grant::CASES,
    queue::CASES,
    token::CASES,
    expiry::CASES,
    unattended::CASES,
    evict::CASES,
    guard::CASES,
    doubt::CASES,
    budget::CASES,
    workload::CASES,
];
