//! Where a round plays: servers of its own, replicas of the real program, and a proxy on each of
//! their connections.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::{
    cluster::Cluster,
    fault::Wire,
    proxy::{Mode, Proxy},
    support::{OwnServer, Process, Servers, World, free_addr},
};

/// Servers that were killed take a while to come back, and so do those who wait for them.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) rabbitmq: Cluster,
    pub(crate) postgres: OwnServer,
    pub(crate) replicas: Vec<Replica>,
}

/// One replica, and the proxies that its connections go through.
pub(crate) struct Replica {
    rabbitmq: Proxy,
    postgres: Proxy,
    customerio: Proxy,
    http_addr: std::net::SocketAddr,
    process: Option<Process>,
    /// The logs of processes that have ended.
    logs: String,
}

/// `host:port` of a URL.
pub(crate) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    rest.rsplit('@').next().unwrap_or(rest)
}

impl Stage {
    pub(crate) async fn set(replicas: usize, rabbitmq: Cluster, postgres: OwnServer) -> Self {
        let servers = Servers {
            database_url: postgres.url(),
            amqp_url: rabbitmq.url(),
            management_url: rabbitmq.management_url(),
        };
        let settings = [
            ("CUSTOMERIO_SYNC__BROKER__CONNECT_TIMEOUT", "3s"),
            ("CUSTOMERIO_SYNC__BROKER__PREFETCH", "50"),
            ("CUSTOMERIO_SYNC__SYNC__BATCH_SIZE", "20"),
            ("CUSTOMERIO_SYNC__CUSTOMERIO__MAX_OPERATIONS", "20"),
            ("CUSTOMERIO_SYNC__CUSTOMERIO__TIMEOUT", "2s"),
            ("CUSTOMERIO_SYNC__CUSTOMERIO__CONNECT_TIMEOUT", "1s"),
            ("CUSTOMERIO_SYNC__DATABASE__ACQUIRE_TIMEOUT", "2s"),
            ("CUSTOMERIO_SYNC__DATABASE__CLAIM_LEASE", "10s"),
            ("CUSTOMERIO_SYNC__GATE__PROBE_AT_LEAST_EVERY", "500ms"),
            ("CUSTOMERIO_SYNC__RECOVERY__INTERVAL", "500ms"),
            ("CUSTOMERIO_SYNC__RECOVERY__OVERDUE_AFTER", "3s"),
            ("CUSTOMERIO_SYNC__RECOVERY__SEND_AGAIN_AFTER", "5s"),
            ("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "500ms"),
            ("CUSTOMERIO_SYNC__LIFECYCLE__GRACE", "3s"),
        ];
        let mut world = World::on(servers).await;
        for (name, value) in settings {
            world = world.with(name, value);
        }
        let mut stage = Self { world, rabbitmq, postgres, replicas: Vec::new() };
        for number in 0..replicas {
            let mut replica = Replica {
                rabbitmq: Proxy::start(stage.rabbitmq.authorities(number)).await,
                postgres: Proxy::start(vec![authority(&stage.world.database_url).to_owned()]).await,
                customerio: Proxy::start(vec![stage.world.simulator.addr().to_string()]).await,
                http_addr: free_addr(),
                process: None,
                logs: String::new(),
            };
            replica.start(&stage.world);
            stage.replicas.push(replica);
        }
        stage
    }

    /// The servers, for the next round.
    pub(crate) fn into_servers(self) -> (Cluster, OwnServer) {
        (self.rabbitmq, self.postgres)
    }

    /// Takes every fault away, and waits until all replicas are ready; says why one is not, if that
    /// takes too long.
    pub(crate) async fn calm(&mut self) -> Result<(), String> {
        self.world.clear_faults().await;
        for replica in &mut self.replicas {
            for proxy in [&replica.rabbitmq, &replica.postgres, &replica.customerio] {
                proxy.set(Mode::Pass);
            }
            if replica.process.is_none() {
                replica.start(&self.world);
            }
        }
        let began = Instant::now();
        for (number, replica) in self.replicas.iter().enumerate() {
            loop {
                let answer = replica.readiness(&self.world).await;
                match answer {
                    Ok(()) => break,
                    Err(why) if began.elapsed() > PATIENCE => {
                        return Err(format!("replica {number} is not ready: {why}"));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
        Ok(())
    }

    /// RabbitMQ (seen in 3.10) writes the names of new quorum queues down within half a second.
    /// When it is killed before, such a queue comes back without a leader, and takes and gives
    /// nothing until somebody deletes it.
    pub(crate) fn let_rabbitmq_write_down_its_queues(&self) {
        self.rabbitmq.control(&["eval", "[ok = dets:sync(Table) || Table <- dets:all()]."]);
    }

    pub(crate) async fn end_sessions(&self) {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let mut connection =
            PgConnection::connect(&self.world.database_url).await.expect("PostgreSQL answers");
        sqlx::query(sql).execute(&mut connection).await.expect("ended");
    }

    pub(crate) async fn lock_jobs(&self, time: Duration) {
        let mut connection =
            PgConnection::connect(&self.world.database_url).await.expect("PostgreSQL answers");
        let mut transaction = connection.begin().await.expect("begun");
        let lock = "LOCK TABLE signup_customerio_sync_jobs IN ACCESS EXCLUSIVE MODE";
        // A migration of a replica that starts may be in the way.
        sqlx::query(lock).execute(&mut *transaction).await.expect("locked");
        tokio::time::sleep(time).await;
        transaction.rollback().await.expect("rolled back");
    }

    /// Writes the logs of the replicas to `folder`.
    pub(crate) fn keep_logs(&self, folder: &Path) {
        std::fs::create_dir_all(folder).expect("the folder is ours");
        for (number, replica) in self.replicas.iter().enumerate() {
            let log = replica.logs.clone()
                + &replica.process.as_ref().map_or_else(String::new, Process::log);
            std::fs::write(folder.join(format!("replica-{number}.log")), log).expect("written");
        }
    }
}

impl Replica {
    async fn readiness(&self, world: &World) -> Result<(), String> {
        let url = format!("http://{}/readyz", self.http_addr);
        let answer = world.http().get(url).send().await.map_err(|error| error.to_string())?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(answer.text().await.map_err(|error| error.to_string())?)
    }

    pub(crate) fn proxy(&self, wire: Wire) -> &Proxy {
        match wire {
            Wire::RabbitMq => &self.rabbitmq,
            Wire::PostgreSql => &self.postgres,
            Wire::CustomerIo => &self.customerio,
        }
    }

    pub(crate) fn start(&mut self, world: &World) {
        let through =
            |url: &str, proxy: &Proxy| url.replace(authority(url), &proxy.addr().to_string());
        let settings = [
            ("AMQP_URL", through(&world.amqp_url, &self.rabbitmq)),
            ("DATABASE_URL", through(&world.database_url, &self.postgres)),
            ("CUSTOMERIO_TRACK_URL", format!("http://{}", self.customerio.addr())),
            ("HTTP_ADDR", self.http_addr.to_string()),
        ];
        self.process = Some(world.spawn_with(&settings));
    }

    fn ended(&mut self) {
        if let Some(process) = self.process.take() {
            self.logs += &process.log();
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill();
        }
        self.ended();
    }

    pub(crate) async fn terminate(&mut self) {
        if let Some(process) = &mut self.process {
            let status = process.terminate().await;
            assert!(
                status.success(),
                "a replica that was asked to stop ended with {status}:\n{}",
                process.log()
            );
        }
        self.ended();
    }

    /// A request to its admin API, if it answers.
    pub(crate) async fn ask(
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
            .timeout(Duration::from_secs(3));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        serde_json::from_str(&request.send().await.ok()?.text().await.ok()?).ok()
    }
}
