//! See [`servicekit_fuzz::certificates`].
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| servicekit_fuzz::certificates(bytes));

#[cfg(not(fuzzing))]
fn main() {
    println!("made for cargo-fuzz: make fuzz");
}
