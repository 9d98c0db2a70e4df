//! The examples are in `examples/`; each runs on the embedded store with no set-up: `cargo run -p servicekit-examples --example lease`.
