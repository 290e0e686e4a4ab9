//! The programs that the tests run.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Maximum duration of a program that a test runs to its end, in seconds.
const PROGRAM_TIMEOUT_SECONDS: &str = "240";

/// The folder into which `./dev ops` installs tools.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("OPS_TOOLS")
        .expect("OPS_TOOLS is not set; run the tests with `./dev ops`")
        .into()
}

/// A program that is ended when it takes too long.
pub(crate) fn limited(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", PROGRAM_TIMEOUT_SECONDS]).arg(program.as_ref());
    command
}

/// The output of a program that ended.
pub(crate) struct Printed {
    pub(crate) succeeded: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Printed {
    let output = command.output().expect("the program starts");
    let Output { status, stdout, stderr } = output;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Printed { succeeded: status.success(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs a program, which must succeed, and returns its standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let printed = run(command);
    assert!(printed.succeeded, "{command:?} failed:\n{}{}", printed.stdout, printed.stderr);
    printed.stdout
}
