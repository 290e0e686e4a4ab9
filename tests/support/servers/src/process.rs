//! Processes, ports and folders.

#![expect(clippy::disallowed_methods, reason = "the end of a process has a deadline")]

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::{TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Error, SERVER_TIMEOUT, installation};

/// Time between two checks whether a process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs a command to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let line = format!("{command:?}");
    let failed = |why: String| Error::Failed(line.clone(), why);
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(failed(format!("{} {}", text(&output.stdout), text(&output.stderr))))
}

pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id == "0")
}

/// A command that runs as an ordinary user where the servers are installed: PostgreSQL refuses to
/// run as root.
pub(crate) fn unprivileged(program: &Path) -> Result<Command, Error> {
    if !is_root() {
        return Ok(installation::command(program));
    }
    as_nobody(installation::command("setpriv"), program)
}

/// Makes a command that runs `setpriv` run a program as `nobody`.
pub(crate) fn as_nobody(mut command: Command, program: &Path) -> Result<Command, Error> {
    let group = output(Command::new("id").args(["-g", "nobody"]))?;
    command.args(["--reuid=nobody", &format!("--regid={group}"), "--clear-groups", "--"]);
    command.arg(program);
    Ok(command)
}

/// Lets the user that PostgreSQL runs as enter `folder`, as far as that depends on the folder
/// itself. Returns whether that user reaches it.
pub fn make_reachable(folder: &Path) -> Result<bool, Error> {
    std::fs::create_dir_all(folder).map_err(|error| io(folder, error))?;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, open).map_err(|error| io(folder, error))?;
    let mut test = unprivileged(Path::new("test"))?;
    Ok(output(test.arg("-x").arg(folder)).is_ok())
}

/// A new folder that the user that PostgreSQL runs as can reach.
pub fn temporary_folder() -> Result<PathBuf, Error> {
    let created = output(Command::new("mktemp").args(["-d", "/tmp/customerio-sync.XXXXXX"]))?;
    let folder = PathBuf::from(created);
    make_reachable(&folder)?;
    Ok(folder)
}

/// Makes the user that PostgreSQL runs as the owner of `path`.
pub(crate) fn hand_over(path: &Path) -> Result<(), Error> {
    if is_root() {
        let id = output(Command::new("id").args(["-u", "nobody"]))?;
        let id = id.parse().expect("id prints a number");
        chown(path, Some(id), None).map_err(|error| io(path, error))?;
    }
    Ok(())
}

pub(crate) fn io(path: &Path, error: std::io::Error) -> Error {
    Error::Io(path.to_owned(), error)
}

pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| io(path, error))?;
    Ok(text.trim().to_owned())
}

pub(crate) fn write(path: &Path, content: &str) -> Result<(), Error> {
    std::fs::write(path, content).map_err(|error| io(path, error))
}

/// A free port below the range that the kernel assigns to outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let random = RandomState::new().build_hasher().finish() % 10_000;
        let port = 20_000 + u16::try_from(random).expect("below 10,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn accepts_connections(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Waits until something listens on `port`.
pub(crate) fn wait_for_port(port: u16) -> Result<(), Error> {
    let deadline = Instant::now() + SERVER_TIMEOUT;
    while !accepts_connections(port) {
        if Instant::now() > deadline {
            return Err(Error::Timeout(format!("listening on port {port}")));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The command of the shell: a machine may lack the program.
fn kill(signal: &str, pid: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "kill \"$0\" \"$1\"", signal, pid]);
    command
}

/// Sends a signal to the process `pid`. Does nothing if it has ended.
pub(crate) fn signal(pid: &str, signal: &str) {
    let _ = output(&mut kill(signal, pid));
}

/// Waits until the process `pid` has ended.
pub(crate) fn wait_for_end(pid: &str) -> Result<(), Error> {
    let deadline = Instant::now() + SERVER_TIMEOUT;
    while output(&mut kill("-0", pid)).is_ok() {
        if Instant::now() > deadline {
            return Err(Error::Timeout(format!("the end of process {pid}")));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
