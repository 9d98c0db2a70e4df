//! The suite on every profile of the in-memory store, as a store's author runs it.

use std::process::ExitCode;

use servicekit_core::store::{Memory, Profile};
use servicekit_testkit::suite::{self, Fresh, Subject, Time};

fn main() -> ExitCode {
    suite::main_of([
        memory("server", Profile::Server),
        memory("feed", Profile::Feed),
        memory("table", Profile::Table),
        Subject::new("real-time", Time::Real, |env| async {
            Ok(Fresh::new(Memory::new(env, Profile::Server)))
        }),
        Subject::new("real-time-feed", Time::Real, |env| async {
            Ok(Fresh::new(Memory::new(env, Profile::Feed)))
        }),
    ])
}

fn memory(name: &'static str, profile: Profile) -> Subject {
    Subject::new(name, Time::Simulated, move |env| async move {
        Ok(Fresh::new(Memory::new(env, profile)))
    })
}
