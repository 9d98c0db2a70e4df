//! See [`servicekit_fuzz::identity`].
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| servicekit_fuzz::identity(bytes));

#[cfg(not(fuzzing))]
fn main() {
    println!("made for cargo-fuzz: make fuzz");
}
