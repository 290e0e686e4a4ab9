//! The environment of a round: its own servers, replicas of the real program, and a proxy on each
//! connection of each replica.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    cluster::Cluster,
    database::Database,
    fault::Peer,
    proxy::{Mode, Proxy},
    support::{Process, Servers, World, authority, free_addr, program_at},
};

/// Time for killed servers to come back, and for the replicas to become ready after them.
const READINESS_TIMEOUT: Duration = Duration::from_secs(60);
const READINESS_POLL_INTERVAL: Duration = Duration::from_millis(50);
const ADMIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Short times and small batches, so that many transitions fit into a round.
const SETTINGS: [(&str, &str); 15] = [
    ("CUSTOMERIO_SYNC__BROKER__CONNECT_TIMEOUT", "3s"),
    ("CUSTOMERIO_SYNC__BROKER__HEARTBEAT", "4s"),
    ("CUSTOMERIO_SYNC__BROKER__PREFETCH", "50"),
    ("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "20"),
    ("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "20"),
    ("CUSTOMERIO_SYNC__CUSTOMERIO__TIMEOUT", "2s"),
    ("CUSTOMERIO_SYNC__CUSTOMERIO__CONNECT_TIMEOUT", "1s"),
    ("CUSTOMERIO_SYNC__DATABASE__ACQUIRE_TIMEOUT", "2s"),
    ("CUSTOMERIO_SYNC__DATABASE__CLAIM_LEASE", "10s"),
    ("CUSTOMERIO_SYNC__BREAKER__PROBE_INTERVAL_MAX", "500ms"),
    ("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "500ms"),
    ("CUSTOMERIO_SYNC__RECOVERY__OVERDUE_AFTER", "3s"),
    ("CUSTOMERIO_SYNC__RECOVERY__RESEND_AFTER", "5s"),
    ("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "500ms"),
    ("CUSTOMERIO_SYNC__LIFECYCLE__GRACE", "3s"),
];

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) rabbitmq: Cluster,
    pub(crate) postgres: Database,
    pub(crate) replicas: Vec<Replica>,
}

/// One replica, and the proxies that its connections pass through.
pub(crate) struct Replica {
    rabbitmq: Proxy,
    postgres: Proxy,
    customerio: Proxy,
    http_addr: std::net::SocketAddr,
    process: Option<Process>,
    /// The logs of its processes that have ended.
    logs: String,
}

impl Stage {
    /// Starts the replicas.
    pub(crate) fn start(&mut self) {
        for replica in &mut self.replicas {
            replica.start(&self.world);
        }
    }

    /// Sets up a new database and virtual host on the servers, and replicas that are not started.
    pub(crate) async fn set_up(replicas: usize, rabbitmq: Cluster, postgres: Database) -> Self {
        let servers = Servers {
            database_url: postgres.url(),
            amqp_url: rabbitmq.url(),
            management_url: rabbitmq.management_url(),
        };
        let mut world = World::on(servers).await;
        for (name, value) in SETTINGS {
            world = world.with(name, value);
        }
        let mut stage = Self { world, rabbitmq, postgres, replicas: Vec::new() };
        for number in 0..replicas {
            let replica = Replica {
                rabbitmq: Proxy::start(stage.rabbitmq.authorities(number)).await,
                postgres: Proxy::start(stage.postgres.authorities()).await,
                customerio: Proxy::start(vec![stage.world.simulator.addr().to_string()]).await,
                http_addr: free_addr(),
                process: None,
                logs: String::new(),
            };
            stage.replicas.push(replica);
        }
        stage
    }

    /// Returns the servers, for the next round.
    pub(crate) fn into_servers(self) -> (Cluster, Database) {
        (self.rabbitmq, self.postgres)
    }

    /// Ends every fault, and waits until all replicas are ready. Fails with the reason why one is
    /// not ready after [`READINESS_TIMEOUT`].
    pub(crate) async fn end_faults(&mut self) -> Result<(), String> {
        self.world.clear_faults().await;
        for replica in &mut self.replicas {
            for proxy in [&replica.rabbitmq, &replica.postgres, &replica.customerio] {
                proxy.set(Mode::Forward);
            }
            if replica.process.is_none() {
                replica.start(&self.world);
            }
        }
        self.wait_until_ready().await
    }

    /// Waits until all replicas are ready. Fails with the reason why one is not ready after
    /// [`READINESS_TIMEOUT`].
    pub(crate) async fn wait_until_ready(&self) -> Result<(), String> {
        let began = Instant::now();
        for (number, replica) in self.replicas.iter().enumerate() {
            loop {
                match replica.readiness(&self.world).await {
                    Ok(()) => break,
                    Err(reason) if began.elapsed() > READINESS_TIMEOUT => {
                        return Err(format!("replica {number} is not ready: {reason}"));
                    }
                    Err(_) => tokio::time::sleep(READINESS_POLL_INTERVAL).await,
                }
            }
        }
        Ok(())
    }

    /// Makes RabbitMQ write the names of its queues to disk.
    ///
    /// RabbitMQ (seen in 3.10) writes those of new quorum queues within half a second. If it is
    /// killed before that, such a queue comes back without a leader, and accepts and delivers
    /// nothing until somebody deletes it.
    pub(crate) fn flush_queue_names(&self) {
        self.rabbitmq.control(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]);
    }

    /// A connection to the primary.
    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.world.database_url).await.expect("PostgreSQL answers")
    }

    /// A connection whose changes of claims do not list the jobs once more.
    pub(crate) async fn connect_as_service(&self) -> PgConnection {
        let mut connection = self.connect().await;
        let sql = "SET customerio_sync.writes_claims = 'on'";
        sqlx::query(sql).execute(&mut connection).await.expect("set");
        connection
    }

    pub(crate) async fn end_sessions(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::query(sql).execute(&mut self.connect().await).await.expect("ended");
    }

    pub(crate) async fn lock_jobs(&self, duration: Duration) {
        let mut connection = self.connect().await;
        let mut transaction = connection.begin().await.expect("begun");
        // This may wait for the migrations of a replica that is starting.
        let lock = "LOCK TABLE signup_customerio_sync_jobs IN ACCESS EXCLUSIVE MODE";
        sqlx::query(lock).execute(&mut *transaction).await.expect("locked");
        tokio::time::sleep(duration).await;
        transaction.rollback().await.expect("rolled back");
    }

    /// Makes all sessions read-only. Sessions that begin after `duration` can write again.
    pub(crate) async fn make_read_only(&self, duration: Duration) {
        let alter = async |change: &str| {
            let mut connection = self.connect().await;
            let database = &self.world.vhost;
            for sql in [
                "SET default_transaction_read_only = off".to_owned(),
                format!("ALTER DATABASE {database} {change}"),
            ] {
                let executed = sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await;
                executed.unwrap_or_else(|error| panic!("{change}: {error}"));
            }
        };
        alter("SET default_transaction_read_only = on").await;
        self.end_sessions().await;
        tokio::time::sleep(duration).await;
        alter("RESET default_transaction_read_only").await;
    }

    /// Makes present claims and messages in the outbox older, as they are after an outage of two
    /// hours.
    pub(crate) async fn age_work(&self) {
        let mut connection = self.connect_as_service().await;
        for sql in [
            "UPDATE signup_customerio_sync_jobs SET claimed_at = claimed_at - interval '2 hours'
                WHERE status = 'processing'",
            "UPDATE claims SET claimed_at = claimed_at - interval '2 hours'",
            "UPDATE outbox SET due_at = due_at - interval '2 hours'",
        ] {
            sqlx::query(sql).execute(&mut connection).await.expect("updated");
        }
    }

    /// Promotes the standby of a primary that is killed.
    pub(crate) async fn fail_over(&mut self, downtime: Duration) {
        self.postgres.fail_over(downtime).await;
        let authorities = self.postgres.authorities();
        for replica in &self.replicas {
            replica.postgres.set_targets(authorities.clone());
        }
    }

    /// Writes the logs of the replicas to `folder`.
    pub(crate) fn save_logs(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("created");
        for (number, replica) in self.replicas.iter().enumerate() {
            let log = replica.logs.clone()
                + &replica.process.as_ref().map_or_else(String::new, Process::log);
            std::fs::write(folder.join(format!("replica-{number}.log")), log).expect("written");
        }
    }
}

impl Replica {
    /// Fails with the reason if the replica is not ready.
    async fn readiness(&self, world: &World) -> Result<(), String> {
        let url = format!("http://{}/readyz", self.http_addr);
        let answer = world.http().get(url).send().await.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(answer.text().await.map_err(|error| error.to_string())?)
    }

    pub(crate) fn proxy(&self, peer: Peer) -> &Proxy {
        match peer {
            Peer::RabbitMq => &self.rabbitmq,
            Peer::PostgreSql => &self.postgres,
            Peer::CustomerIo => &self.customerio,
        }
    }

    /// Starts the program that is tested.
    pub(crate) fn start(&mut self, world: &World) {
        self.start_program(Path::new(env!("CARGO_BIN_EXE_customerio-sync")), world, &[]);
    }

    /// Starts a program with further settings.
    pub(crate) fn start_program(
        &mut self,
        program: &Path,
        world: &World,
        further: &[(&str, String)],
    ) {
        let via = |url: &str, proxy: &Proxy| url.replace(authority(url), &proxy.addr().to_string());
        let mut settings = vec![
            ("AMQP_URL", via(&world.amqp_url, &self.rabbitmq)),
            ("DATABASE_URL", via(&world.database_url, &self.postgres)),
            ("CUSTOMERIO_TRACK_URL", format!("http://{}", self.customerio.addr())),
            ("HTTP_ADDR", self.http_addr.to_string()),
        ];
        settings.extend_from_slice(further);
        let command = program_at(program, &world.settings_with(&settings));
        self.process = Some(Process::start(command, &["serve"]));
    }

    /// Removes the process, which has ended, and keeps its log.
    fn remove_process(&mut self) {
        if let Some(process) = self.process.take() {
            self.logs += &process.log();
        }
    }

    /// Ends the replica with SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.remove_process();
    }

    /// Ends the replica with SIGTERM, and checks that it ends successfully.
    pub(crate) async fn terminate(&mut self) {
        if let Some(process) = &mut self.process {
            let status = process.terminate().await;
            assert!(
                status.success(),
                "a replica ended with {status} after SIGTERM:\n{}",
                process.log()
            );
        }
        self.remove_process();
    }

    /// Sends a request to the admin API. Returns `None` if there is no answer in JSON.
    pub(crate) async fn request(
        &self,
        world: &World,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Value> {
        let url = format!("http://{}/api/v1/signups/customerio{path}", self.http_addr);
        let mut request = world
            .http()
            .request(method.parse().expect("a method"), url)
            .timeout(ADMIN_REQUEST_TIMEOUT);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        serde_json::from_str(&request.send().await.ok()?.text().await.ok()?).ok()
    }
}
