//! What one run needs: a database, a virtual host, a simulator, and replicas of a program.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, Row};
use test_servers::{Server, free_port};
use uuid::Uuid;

use crate::{
    servers::{Servers, output},
    wire,
};

const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum time without progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Maximum time until a replica is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A process, which is ended when this is dropped.
pub(crate) struct Program(pub(crate) Child);

impl Drop for Program {
    fn drop(&mut self) {
        // A replica that is asked to end writes nothing more to the database that is dropped next.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A database and a virtual host with the schema and the topology of a program, and a simulator.
pub(crate) struct Stage<'a> {
    servers: &'a Servers,
    name: String,
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) pool: PgPool,
    pub(crate) http: reqwest::Client,
    simulator_url: String,
    simulator: Program,
}

impl<'a> Stage<'a> {
    pub(crate) async fn new(servers: &'a Servers, program: &Path, simulator: &Path) -> Self {
        let name = format!("bench_{}", Uuid::new_v4().simple());
        let admin_url = servers.postgres.url().expect("PostgreSQL runs");
        let admin = PgPool::connect(&admin_url).await.expect("PostgreSQL answers");
        let create = format!("CREATE DATABASE {name}");
        sqlx::query(AssertSqlSafe(create)).execute(&admin).await.expect("created");
        let http = reqwest::Client::new();
        let management = servers.rabbitmq.management_url().expect("RabbitMQ runs");
        let created = http.put(format!("{management}/api/vhosts/{name}")).send().await;
        assert!(created.expect("RabbitMQ answers").status().is_success());
        let with_name = |url: &str| {
            let (server, _) = url.rsplit_once('/').expect("a URL with a path");
            format!("{server}/{name}")
        };
        let simulator_addr = format!("127.0.0.1:{}", free_port());
        let stage = Self {
            database_url: with_name(&admin_url),
            amqp_url: with_name(&servers.rabbitmq.url().expect("RabbitMQ runs")),
            pool: PgPool::connect(&with_name(&admin_url)).await.expect("PostgreSQL answers"),
            simulator_url: format!("http://{simulator_addr}"),
            simulator: spawn(Command::new(simulator).args(["simulate", "--addr", &simulator_addr])),
            servers,
            name,
            http,
        };
        output(&mut stage.command(program, "migrate"));
        output(&mut stage.command(program, "topology"));
        stage
    }

    /// A command of a program, with the settings of this stage.
    pub(crate) fn command(&self, program: &Path, subcommand: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(subcommand);
        self.set_environment(&mut command);
        command
    }

    pub(crate) fn set_environment(&self, command: &mut Command) {
        command.envs([
            ("DATABASE_URL", self.database_url.as_str()),
            ("AMQP_URL", &self.amqp_url),
            ("CUSTOMERIO_TRACK_URL", &self.simulator_url),
            ("CUSTOMERIO_SITE_ID", "site"),
            ("CUSTOMERIO_API_KEY", "key"),
            ("RUST_LOG", "warn"),
            // The simulator has no limit.
            ("CUSTOMERIO_SYNC__CUSTOMERIO__REQUESTS_PER_SECOND", "100000"),
        ]);
    }

    /// Starts a replica, and returns it with the URL of its admin API.
    pub(crate) fn serve(&self, program: &Path) -> (Program, String) {
        self.serve_with(program, &[])
    }

    /// Starts a replica with further settings.
    pub(crate) fn serve_with(&self, program: &Path, further: &[(&str, &str)]) -> (Program, String) {
        let addr = format!("127.0.0.1:{}", free_port());
        let mut command = self.command(program, "serve");
        command.env("HTTP_ADDR", &addr).envs(further.iter().copied());
        (spawn(&mut command), format!("http://{addr}"))
    }

    /// Waits until a replica is ready.
    pub(crate) async fn wait_until_ready(&self, url: &str) {
        let is_ready = || async {
            let response = self.http.get(format!("{url}/readyz")).send().await;
            response.is_ok_and(|response| response.status().is_success())
        };
        let waiting = async {
            while !is_ready().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(READY_TIMEOUT, waiting).await.expect("the service is ready");
    }

    /// Publishes generated events, which wait in their queue.
    pub(crate) fn publish(&self, program: &Path, events: usize) {
        let mut command = self.command(program, "publish");
        output(command.args(["--sample", &events.to_string()]));
    }

    pub(crate) async fn add_fault(&self, fault: Value) {
        let url = format!("{}/_sim/faults", self.simulator_url);
        let request = self.http.post(url).header("content-type", "application/json");
        let response = request.body(fault.to_string()).send().await.expect("the simulator answers");
        assert!(response.status().is_success(), "{fault}: {}", response.status());
    }

    /// Makes the simulator forget what it received.
    pub(crate) async fn clear_simulator(&self) {
        let url = format!("{}/_sim/received", self.simulator_url);
        self.http.delete(url).send().await.expect("the simulator answers");
    }

    /// Bytes on the open connections of the programs, in both directions: to RabbitMQ, PostgreSQL
    /// and the simulator.
    pub(crate) fn bytes_on_wire(&self) -> [f64; 3] {
        let port = |url: &str| reqwest::Url::parse(url).ok().and_then(|url| url.port());
        let own = std::process::id();
        let sockets = output(Command::new("ss").args(["-tinpHO"]));
        [&self.amqp_url, &self.database_url, &self.simulator_url]
            .map(|url| wire::bytes_of_others(&sockets, own, port(url).expect("a URL with a port")))
    }

    pub(crate) fn simulator_cpu(&self) -> f64 {
        self.servers.cpu(self.simulator.0.id())
    }

    /// Waits until `jobs` calls that began after `since`, in seconds since 1970, were accepted and
    /// recorded. What it asks of the database costs the same however many rows there are.
    pub(crate) async fn wait_until_completed(&self, jobs: usize, since: f64) {
        let recorded = format!(
            "SELECT count(*) FROM sync_attempts
            WHERE started_at >= to_timestamp({since}) AND error_type IS NULL"
        );
        let (mut last, mut changed) = (0, Instant::now());
        loop {
            let events = self.simulator_events().await;
            if events >= jobs && self.number(&recorded).await as usize >= jobs {
                return;
            }
            if events != last {
                (last, changed) = (events, Instant::now());
            }
            assert!(changed.elapsed() < STALL_TIMEOUT, "only {events} of {jobs} events were sent");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn simulator_events(&self) -> usize {
        let url = format!("{}/_sim/summary", self.simulator_url);
        let response = self.http.get(url).send().await.expect("the simulator answers");
        let text = response.text().await.expect("a body");
        let summary: Value = serde_json::from_str(&text).expect("JSON");
        summary["events"].as_u64().expect("a number") as usize
    }

    /// The time by the database's clock, in seconds since 1970.
    pub(crate) async fn now(&self) -> f64 {
        self.number("extract(epoch FROM clock_timestamp())").await
    }

    /// Transactions that were committed in the database. Sessions report theirs up to a second
    /// late, which this waits for.
    pub(crate) async fn commits(&self) -> f64 {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        self.number("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
            .await
    }

    /// The number that a query returns.
    pub(crate) async fn number(&self, sql: &str) -> f64 {
        let sql = format!("SELECT ({sql})::float8");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&self.pool).await;
        row.expect("PostgreSQL answers").try_get(0).expect("a number")
    }

    pub(crate) async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.expect("executed");
    }

    /// Removes the database and the virtual host. The replicas must have ended.
    pub(crate) async fn remove(self) {
        self.pool.close().await;
        drop(self.simulator);
        let admin_url = self.servers.postgres.url().expect("PostgreSQL runs");
        let admin = PgPool::connect(&admin_url).await.expect("PostgreSQL answers");
        let drop_database = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        sqlx::query(AssertSqlSafe(drop_database)).execute(&admin).await.expect("dropped");
        let management = self.servers.rabbitmq.management_url().expect("RabbitMQ runs");
        let url = format!("{management}/api/vhosts/{}", self.name);
        self.http.delete(url).send().await.expect("RabbitMQ answers");
    }
}

/// Starts a command in the background, without its output.
pub(crate) fn spawn(command: &mut Command) -> Program {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Program(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// A folder next to this package.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}
