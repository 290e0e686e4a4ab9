//! A PostgreSQL server.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    Error, SERVER_TIMEOUT, Server, TlsFiles, installation,
    process::{accepts_connections, free_port, hand_over, io, output, read, unprivileged, write},
};

/// Connections of a whole test run.
const CONNECTIONS_MAX: u32 = 300;

/// A PostgreSQL server in a folder.
#[derive(Debug)]
pub struct Postgres {
    folder: PathBuf,
}

/// TLS in `postgresql.auto.conf`, whose other settings are given on the command line.
const TLS_SETTINGS: &str = "ssl = on\nssl_ca_file = 'ca.pem'\n";

impl Postgres {
    /// Makes the server speak TLS with these files, from the next connection on; plain connections
    /// are still accepted. The server must be running.
    pub fn serve_tls(&self, files: TlsFiles<'_>) -> Result<(), Error> {
        self.install(files.certificate, "server.crt")?;
        self.install(files.key, "server.key")?;
        self.install(files.client_authority, "ca.pem")?;
        write(&self.folder.join("data/postgresql.auto.conf"), TLS_SETTINGS)?;
        self.pg_ctl(&["reload"])
    }

    /// Decides how roles prove who they are, from the next connection on: lines of `pg_hba.conf`
    /// (<https://www.postgresql.org/docs/current/auth-pg-hba-conf.html>). Roles that no line
    /// concerns are trusted. The server must be running.
    pub fn authenticate(&self, lines: &str) -> Result<(), Error> {
        let rest = "host all all 127.0.0.1/32 trust\n";
        write(&self.folder.join("data/pg_hba.conf"), &format!("{lines}\n{rest}"))?;
        self.pg_ctl(&["reload"])
    }

    /// Copies the running primary that `port` leads to, and makes this server its standby, which is
    /// not started (<https://www.postgresql.org/docs/current/app-pgbasebackup.html>).
    pub fn follow(&self, port: u16) -> Result<(), Error> {
        std::fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        hand_over(&self.folder)?;
        let mut backup = unprivileged(&installation::postgres()?.join("pg_basebackup"))?;
        backup.arg("-D").arg(self.folder.join("data"));
        backup.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]);
        backup.args(["-c", "fast", "-X", "stream", "-R"]);
        output(&mut backup)?;
        write(&self.folder.join("port"), &free_port().to_string())
    }

    /// Makes this standby a primary.
    pub fn promote(&self) -> Result<(), Error> {
        self.pg_ctl(&["promote"])
    }

    /// Copies a file into the data folder, where only the server can read it.
    fn install(&self, file: &Path, name: &str) -> Result<(), Error> {
        let installed = self.folder.join("data").join(name);
        std::fs::copy(file, &installed).map_err(|error| io(file, error))?;
        let secret = Permissions::from_mode(0o600);
        std::fs::set_permissions(&installed, secret).map_err(|error| io(&installed, error))?;
        hand_over(&installed)
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<(), Error> {
        let mut command = unprivileged(&installation::postgres()?.join("pg_ctl"))?;
        command.arg("-D").arg(self.folder.join("data")).arg("-w").args(arguments);
        output(&mut command).map(drop)
    }

    fn initialize(&self) -> Result<(), Error> {
        std::fs::create_dir_all(&self.folder).map_err(|error| io(&self.folder, error))?;
        hand_over(&self.folder)?;
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
                -c max_connections={CONNECTIONS_MAX} -c wal_retrieve_retry_interval=200ms",
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
