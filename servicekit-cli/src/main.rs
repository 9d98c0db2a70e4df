//! The command `servicekit` with the backends that are compiled in.

fn main() -> std::process::ExitCode {
    servicekit_cli::main(servicekit::Connector::builtin())
}
