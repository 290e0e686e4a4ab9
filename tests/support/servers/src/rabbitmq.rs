//! A RabbitMQ node.

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{
    Error, SERVER_TIMEOUT, Server, TlsFiles, installation,
    process::{accepts_connections, free_port, io, output, read, signal, wait_for_end, write},
};

/// A RabbitMQ node in a folder. It has an epmd of its own.
#[derive(Debug)]
pub struct RabbitMq {
    folder: PathBuf,
}

/// What a node of a cluster needs besides the defaults. Takes effect at the first start.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Name of the node, without its host, which is `localhost`.
    pub name: &'a str,
    /// The Erlang cookie, which all nodes of a cluster share.
    pub cookie: &'a str,
    /// Further settings, as in `rabbitmq.conf` (<https://www.rabbitmq.com/docs/configure>).
    pub settings: &'a str,
    /// Content of `advanced.config`.
    pub advanced_settings: &'a str,
}

impl RabbitMq {
    /// Prepares the node for a cluster. To be called before its first start.
    pub fn configure(&self, node: Node<'_>) -> Result<(), Error> {
        let conf_d = self.folder.join("conf.d");
        std::fs::create_dir_all(&conf_d).map_err(|error| io(&conf_d, error))?;
        write(&self.folder.join("name"), node.name)?;
        write(&conf_d.join("cluster.conf"), node.settings)?;
        write(&self.folder.join("advanced.config"), node.advanced_settings)?;
        let cookie = self.folder.join(".erlang.cookie");
        write(&cookie, node.cookie)?;
        // Erlang refuses a cookie that others can read.
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        std::fs::set_permissions(&cookie, secret).map_err(|error| io(&cookie, error))
    }

    /// Makes the node also accept TLS connections (<https://www.rabbitmq.com/docs/ssl>), from its
    /// next start on. It checks the certificates of clients that present one; with
    /// `is_certificate_required` it refuses the others.
    pub fn serve_tls(
        &self,
        files: TlsFiles<'_>,
        is_certificate_required: bool,
    ) -> Result<(), Error> {
        let conf_d = self.folder.join("conf.d");
        std::fs::create_dir_all(&conf_d).map_err(|error| io(&conf_d, error))?;
        let port = free_port();
        write(&self.folder.join("tls-port"), &port.to_string())?;
        write(
            &conf_d.join("tls.conf"),
            &format!(
                "listeners.ssl.1 = 127.0.0.1:{port}\n\
                 ssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\nssl_options.verify = verify_peer\n\
                 ssl_options.fail_if_no_peer_cert = {is_certificate_required}\n",
                files.client_authority.display(),
                files.certificate.display(),
                files.key.display(),
            ),
        )
    }

    /// Makes the node read its certificates again, and ends every connection.
    pub fn reload_certificates(&self) -> Result<(), Error> {
        // Erlang keeps the content of the files for two minutes.
        self.control(&["eval", "ssl:clear_pem_cache()."])?;
        self.control(&["close_all_connections", "new certificates"]).map(drop)
    }

    /// The port for TLS connections, after [`RabbitMq::serve_tls`].
    pub fn tls_port(&self) -> Result<u16, Error> {
        self.port("tls-port")
    }

    /// Runs `rabbitmqctl` and returns what it printed.
    pub fn control(&self, arguments: &[&str]) -> Result<String, Error> {
        output(self.rabbitmqctl()?.arg("--quiet").args(arguments))
    }

    /// Reduces the memory limit so far that the node blocks every publisher, or restores the
    /// default (<https://www.rabbitmq.com/docs/memory>).
    pub fn set_memory_alarm(&self, is_on: bool) -> Result<(), Error> {
        let share = if is_on { "0.0001" } else { "0.4" };
        self.control(&["set_vm_memory_high_watermark", share]).map(drop)
    }

    /// URL of the management API. The node must have been started before.
    pub fn management_url(&self) -> Result<String, Error> {
        Ok(format!("http://guest:guest@127.0.0.1:{}", self.port("management-port")?))
    }

    /// The port that other nodes connect to.
    pub fn distribution_port(&self) -> Result<u16, Error> {
        self.port("dist-port")
    }

    /// The port of the node's epmd (<https://www.erlang.org/doc/apps/erts/epmd_cmd.html>).
    pub fn epmd_port(&self) -> Result<u16, Error> {
        self.port("epmd-port")
    }

    fn port(&self, file: &str) -> Result<u16, Error> {
        Ok(read(&self.folder.join(file))?.parse().expect("the file contains a port"))
    }

    fn initialize(&self) -> Result<(), Error> {
        for folder in ["log", "conf.d"] {
            let folder = self.folder.join(folder);
            std::fs::create_dir_all(&folder).map_err(|error| io(&folder, error))?;
        }
        let management_port = free_port();
        write(&self.folder.join("enabled_plugins"), "[rabbitmq_management].\n")?;
        write(
            &self.folder.join("rabbitmq.conf"),
            &format!(
                "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management_port}\n\
                 disk_free_limit.absolute = 50MB\nlog.console = false\n"
            ),
        )?;
        write(&self.folder.join("management-port"), &management_port.to_string())?;
        // The file `port` comes last: it marks an initialized folder.
        for file in ["dist-port", "epmd-port", "port"] {
            write(&self.folder.join(file), &free_port().to_string())?;
        }
        Ok(())
    }

    /// A script of RabbitMQ, as `run` starts it, with the environment of this node
    /// (<https://www.rabbitmq.com/docs/configure#supported-environment-variables>).
    fn script(&self, name: &str, mut run: Command) -> Result<Command, Error> {
        let node = read(&self.folder.join("name")).unwrap_or_else(|_| "dev".to_owned());
        let inside = |file: &str| self.folder.join(file);
        run.arg(installation::rabbitmq()?.join(name))
            .env("HOME", &self.folder)
            .env("LANG", "C.UTF-8")
            .env("RABBITMQ_NODENAME", format!("{node}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port("port")?.to_string())
            .env("RABBITMQ_DIST_PORT", self.port("dist-port")?.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.port("epmd-port")?.to_string())
            .env("RABBITMQ_MNESIA_BASE", inside("mnesia"))
            .env("RABBITMQ_LOG_BASE", inside("log"))
            .env("RABBITMQ_PID_FILE", inside("pid"))
            .env("RABBITMQ_CONFIG_FILE", inside("rabbitmq.conf"))
            .env("RABBITMQ_CONFIG_FILES", inside("conf.d"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", inside("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}",
            );
        Ok(run)
    }

    fn rabbitmqctl(&self) -> Result<Command, Error> {
        // `env` runs a program with the environment that it is given.
        self.script("rabbitmqctl", installation::command("env"))
    }

    fn pid_file(&self) -> PathBuf {
        self.folder.join("pid")
    }
}

impl Server for RabbitMq {
    fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn start(&self) -> Result<(), Error> {
        if !self.folder.join("port").exists() {
            self.initialize()?;
        }
        let _ = std::fs::remove_file(self.pid_file());
        let console = self.folder.join("log/console");
        let out = File::create(&console).map_err(|error| io(&console, error))?;
        let err = out.try_clone().map_err(|error| io(&console, error))?;
        let mut server = self.script("rabbitmq-server", installation::command("setsid"))?;
        server.stdin(Stdio::null()).stdout(out).stderr(err);
        let mut child = server.spawn().map_err(|error| io(&self.folder, error))?;
        // Otherwise the process would remain a zombie, and seem alive, after its end.
        std::thread::spawn(move || child.wait());
        let timeout = SERVER_TIMEOUT.as_secs().to_string();
        let mut wait = self.rabbitmqctl()?;
        output(wait.args(["wait", "--timeout", &timeout]).arg(self.pid_file())).map(drop)
    }

    fn stop(&self) -> Result<(), Error> {
        let Ok(pid) = read(&self.pid_file()) else { return Ok(()) };
        signal(&pid, "-TERM");
        wait_for_end(&pid)?;
        let _ = std::fs::remove_file(self.pid_file());
        // epmd refuses while another node is registered with it.
        let mut epmd = installation::command("epmd");
        let _ = output(epmd.arg("-kill").env("ERL_EPMD_PORT", self.epmd_port()?.to_string()));
        Ok(())
    }

    fn kill(&self) -> Result<(), Error> {
        let pid = read(&self.pid_file())?;
        signal(&pid, "-KILL");
        wait_for_end(&pid)
    }

    fn is_running(&self) -> bool {
        self.port("port").is_ok_and(accepts_connections)
    }

    fn url(&self) -> Result<String, Error> {
        Ok(format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port("port")?))
    }
}
