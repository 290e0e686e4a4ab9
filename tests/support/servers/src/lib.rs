//! Private RabbitMQ and PostgreSQL servers for tests and for `./dev`: each runs in a folder of its
//! own, on free ports of 127.0.0.1, in a process session of its own.
//!
//! The servers are those of the machine. If the environment variable `TRIXIE` names a folder with
//! another Debian, they run in there, by `chroot`; see [`run_in_trixie`].

mod installation;
mod pgbouncer;
mod postgres;
mod previous;
mod process;
mod rabbitmq;
mod trixie;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

pub use installation::{are_servers_installed, postgres as postgres_programs};
pub use pgbouncer::{PgBouncer, PoolMode};
pub use postgres::Postgres;
pub use previous::{previous_program, previous_release};
pub use process::{free_port, make_reachable, temporary_folder};
pub use rabbitmq::{Node, RabbitMq};
pub use trixie::run_in_trixie;

/// Maximum time for a server to start or to stop.
const SERVER_TIMEOUT: Duration = Duration::from_secs(90);

/// Why an operation on a server failed.
#[derive(Debug)]
pub enum Error {
    /// The program is not installed.
    NotInstalled(&'static str),
    /// A file or a process of the server could not be accessed.
    Io(PathBuf, std::io::Error),
    /// A program of the server failed: its command line, and what it printed.
    Failed(String, String),
    /// The server did not stop in time.
    Timeout(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInstalled(program) => write!(f, "{program} is not installed"),
            Self::Io(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Failed(command, output) => write!(f, "{command} failed: {output}"),
            Self::Timeout(what) => write!(f, "{what} took longer than {SERVER_TIMEOUT:?}"),
        }
    }
}

impl std::error::Error for Error {}

/// The files of a server that speaks TLS, in PEM.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'a> {
    /// Certificate of the server.
    pub certificate: &'a Path,
    /// Its private key.
    pub key: &'a Path,
    /// Certificates of the authorities whose client certificates the server accepts.
    pub client_authority: &'a Path,
}

/// A server that can be stopped, killed and started again with the same data.
pub trait Server {
    /// The server that keeps its data in `folder`. It is not started.
    fn new(folder: PathBuf) -> Self;

    /// Starts the server, and returns when it accepts connections.
    fn start(&self) -> Result<(), Error>;

    /// Stops the server cleanly. Does nothing if it is not running.
    fn stop(&self) -> Result<(), Error>;

    /// Ends the server at once, without a clean shutdown. It recovers at the next start.
    fn kill(&self) -> Result<(), Error>;

    /// Whether the server accepts connections.
    fn is_running(&self) -> bool;

    /// URL for clients. The server must have been started before.
    fn url(&self) -> Result<String, Error>;
}
