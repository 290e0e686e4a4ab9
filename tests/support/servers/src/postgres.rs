//! A PostgreSQL server.

use std::{os::unix::fs::chown, path::PathBuf, process::Command};

use crate::{
    Error, SERVER_TIMEOUT, Server, installation,
    process::{accepts_connections, free_port, io, is_root, output, read, unprivileged, write},
};

/// Connections of a whole test run.
const CONNECTIONS_MAX: u32 = 300;

/// A PostgreSQL server in a folder.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
}

impl Postgres {
    fn pg_ctl(&self, arguments: &[&str]) -> Result<(), Error> {
        let mut command = unprivileged(&installation::postgres()?.join("pg_ctl"))?;
        command.arg("-D").arg(self.folder.join("data")).arg("-w").args(arguments);
        output(&mut command).map(drop)
    }

    fn initialize(&self) -> Result<(), Error> {
        std::fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        if is_root() {
            let id = output(Command::new("id").args(["-u", "nobody"]))?;
            let id = id.parse().expect("id prints a number");
            chown(&self.folder, Some(id), None).map_err(|error| io(&self.folder, error))?;
        }
        let mut initdb = unprivileged(&installation::postgres()?.join("initdb"))?;
        initdb.arg("-D").arg(self.folder.join("data"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]);
        output(&mut initdb)?;
        write(&self.folder.join("port"), &free_port().to_string())
    }

    fn port(&self) -> Result<u16, Error> {
        Ok(read(&self.folder.join("port"))?.parse().expect("the file contains a port"))
    }
}

impl Server for Postgres {
    fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn start(&self) -> Result<(), Error> {
        if !self.folder.join("port").exists() {
            self.initialize()?;
        }
        let options = format!(
            "-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
                -c max_connections={CONNECTIONS_MAX}",
            self.port()?
        );
        let log = self.folder.join("log").display().to_string();
        let timeout = SERVER_TIMEOUT.as_secs().to_string();
        // pg_ctl starts the server in a session of its own.
        self.pg_ctl(&["-t", &timeout, "-l", &log, "-o", &options, "start"])
    }

    fn stop(&self) -> Result<(), Error> {
        if !self.folder.join("data/postmaster.pid").exists() {
            return Ok(());
        }
        self.pg_ctl(&["-m", "fast", "stop"])
    }

    fn kill(&self) -> Result<(), Error> {
        self.pg_ctl(&["-m", "immediate", "stop"])
    }

    fn is_running(&self) -> bool {
        self.port().is_ok_and(accepts_connections)
    }

    fn url(&self) -> Result<String, Error> {
        Ok(format!("postgres://postgres@127.0.0.1:{}/postgres", self.port()?))
    }
}
