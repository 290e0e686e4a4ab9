//! Entry point of the program; see [`customerio_sync::cli`].

use std::process::ExitCode;

/// The allocator. `.cargo/config.toml` has its settings.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    customerio_sync::cli::run()
}
