//! The program as a process of its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::wait_for;

/// A running program.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    pub(crate) fn spawn(arguments: &[&str], settings: &[(String, String)]) -> Self {
        Self::start(program(settings), arguments)
    }

    /// Starts a program whose log is its standard error.
    pub(crate) fn start(mut program: Command, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).expect("a log file");
        let child = program
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .expect("the program starts");
        Self { child, log, _folder: folder }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// Waits for a line of the log that contains `text`.
    pub(crate) async fn wait_for_line(&self, text: &str) -> String {
        let find = || self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        wait_for(&format!("a log line with {text:?}"), || std::future::ready(find())).await
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("the process is a child");
    }

    /// Sends SIGTERM, and returns the exit status.
    pub(crate) async fn terminate(&mut self) -> std::process::ExitStatus {
        let killed =
            Command::new("kill").arg(self.child.id().to_string()).status().expect("kill is there");
        assert!(killed.success(), "the process is running");
        wait_for("the process to end", || {
            std::future::ready(self.child.try_wait().expect("the process is a child"))
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, with these settings and no other environment.
pub(crate) fn program(settings: &[(String, String)]) -> Command {
    program_at(Path::new(env!("CARGO_BIN_EXE_customerio-sync")), settings)
}

/// A program elsewhere, with these settings and no other environment.
pub(crate) fn program_at(path: &Path, settings: &[(String, String)]) -> Command {
    let mut command = Command::new(path);
    command.env_clear().envs(settings.iter().cloned());
    command
}
