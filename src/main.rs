//! Entry point of the program; see [`customerio_sync::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    customerio_sync::cli::run()
}
