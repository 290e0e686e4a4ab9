//! A connection pooler in front of PostgreSQL.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    Error, Server,
    process::{
        accepts_connections, as_nobody, free_port, hand_over, io, is_root, output, read, signal,
        wait_for_end, wait_for_port, write,
    },
};

/// When PgBouncer assigns a server connection to another client
/// (<https://www.pgbouncer.org/config.html#pool_mode>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// When the transaction ends.
    Transaction,
}

/// A PgBouncer in a folder.
#[derive(Debug)]
pub struct PgBouncer {
    folder: PathBuf,
}

impl PgBouncer {
    /// Chooses the PostgreSQL server, by `host` and `port`, and the mode. To be called before the
    /// start. All clients become the user `postgres`.
    pub fn configure(&self, (host, port): (&str, u16), mode: PoolMode) -> Result<(), Error> {
        std::fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        let listen_port = free_port();
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let folder = self.folder.display();
        write(
            &self.folder.join("pgbouncer.ini"),
            &format!(
                "[databases]\n* = host={host} port={port} user=postgres\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {listen_port}\n\
                 auth_type = any\npool_mode = {mode}\nunix_socket_dir =\n\
                 default_pool_size = 50\nmax_client_conn = 200\n\
                 ignore_startup_parameters = extra_float_digits\n\
                 logfile = {folder}/log\npidfile = {folder}/pid\n"
            ),
        )?;
        write(&self.folder.join("port"), &listen_port.to_string())?;
        hand_over(&self.folder)
    }

    fn port(&self) -> Result<u16, Error> {
        Ok(read(&self.folder.join("port"))?.parse().expect("the file contains a port"))
    }
}

impl Server for PgBouncer {
    fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn start(&self) -> Result<(), Error> {
        // Also beside the servers of another Debian: it reaches PostgreSQL over TCP. It refuses to
        // run as root.
        let program = Path::new("pgbouncer");
        let mut command = if is_root() {
            as_nobody(Command::new("setpriv"), program)?
        } else {
            Command::new(program)
        };
        // As a daemon it has a session of its own.
        command.arg("-d").arg(self.folder.join("pgbouncer.ini"));
        let path = std::env::var("PATH").unwrap_or_default();
        output(command.env("PATH", format!("{path}:/usr/sbin")))?;
        wait_for_port(self.port()?)
    }

    /// Ends the process at once: it keeps nothing, and since 1.23 SIGTERM waits for its clients.
    fn stop(&self) -> Result<(), Error> {
        let Ok(pid) = read(&self.folder.join("pid")) else { return Ok(()) };
        signal(&pid, "-KILL");
        wait_for_end(&pid)?;
        let _ = std::fs::remove_file(self.folder.join("pid"));
        Ok(())
    }

    fn kill(&self) -> Result<(), Error> {
        self.stop()
    }

    fn is_running(&self) -> bool {
        self.port().is_ok_and(accepts_connections)
    }

    fn url(&self) -> Result<String, Error> {
        Ok(format!("postgres://postgres@127.0.0.1:{}/postgres", self.port()?))
    }
}
