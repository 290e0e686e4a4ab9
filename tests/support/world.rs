//! The world of one test.

use std::time::Duration;

use customerio_sync::{app::App, config::Config, simulator::Simulator};
use lapin::Connection;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, PgPool};
use test_servers::RabbitMq;
use uuid::Uuid;

use super::{Forwarder, Process, TempServer, address, authority, submitted};

/// Short tiers, so that a whole ladder takes two seconds.
pub(crate) const SHORT_LADDER: &str = "200ms,300ms,400ms,500ms,600ms";

fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set; run the tests with `./dev test`"))
}

/// Addresses of the servers of a world.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) management_url: String,
}

impl Servers {
    /// The servers that all tests share.
    pub(crate) fn shared() -> Self {
        Self {
            database_url: required("DATABASE_URL"),
            amqp_url: required("AMQP_URL"),
            management_url: required("RABBITMQ_MANAGEMENT_URL"),
        }
    }

    /// The shared PostgreSQL, and another RabbitMQ.
    pub(crate) fn with_rabbitmq(rabbitmq: &TempServer<RabbitMq>) -> Self {
        Self {
            amqp_url: rabbitmq.url(),
            management_url: rabbitmq.management_url().expect("it was started"),
            ..Self::shared()
        }
    }
}

/// A database, a virtual host and a simulator for one test, and the settings of the service.
pub(crate) struct World {
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) vhost: String,
    pub(crate) management_url: String,
    pub(crate) pool: PgPool,
    pub(crate) simulator: Simulator,
    /// For all channels of the test. Replaced when it is lost.
    pub(super) connection: tokio::sync::Mutex<Option<Connection>>,
    pub(super) http: reqwest::Client,
    settings: Vec<(String, String)>,
}

pub(crate) fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(Servers::shared()).await
    }

    /// Creates a world on these servers.
    pub(crate) async fn on(servers: Servers) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        let mut admin =
            PgConnection::connect(&servers.database_url).await.expect("PostgreSQL answers");
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut admin)
            .await
            .expect("created");
        let (server, _) = servers.database_url.rsplit_once('/').expect("a URL with a database");
        let database_url = format!("{server}/{name}");
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .connect_lazy(&database_url)
            .expect("a URL");

        let http = http_client();
        let created = http
            .put(format!("{}/api/vhosts/{name}", servers.management_url))
            .send()
            .await
            .expect("RabbitMQ answers");
        assert!(created.status().is_success(), "creating a virtual host: {}", created.status());
        let (server, _) = servers.amqp_url.rsplit_once('/').expect("a URL with a virtual host");
        let amqp_url = format!("{server}/{name}");

        let simulator = Simulator::start("127.0.0.1:0".parse().expect("an address"), Vec::new())
            .await
            .expect("started");
        let settings = [
            ("DATABASE_URL", database_url.clone()),
            ("AMQP_URL", amqp_url.clone()),
            ("CUSTOMERIO_SITE_ID", "site".to_owned()),
            ("CUSTOMERIO_API_KEY", "key".to_owned()),
            ("CUSTOMERIO_TRACK_URL", format!("http://{}", simulator.addr())),
            ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
            ("RETRY_DELAYS", SHORT_LADDER.to_owned()),
            ("CUSTOMERIO_SYNC__BREAKER__PROBE_AFTER", "50ms".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self {
            database_url,
            amqp_url,
            vhost: name,
            management_url: servers.management_url,
            pool,
            simulator,
            connection: tokio::sync::Mutex::default(),
            http,
            settings,
        }
    }

    /// A world whose service reaches the server of the setting `variable` through a forwarder.
    pub(crate) async fn behind_forwarder(variable: &str) -> (Self, Forwarder) {
        let world = Self::new().await;
        let url = match variable {
            "DATABASE_URL" => world.database_url.clone(),
            "AMQP_URL" => world.amqp_url.clone(),
            _ => format!("http://{}", world.simulator.addr()),
        };
        let target = address(&url);
        let forwarder = Forwarder::start(([127, 0, 0, 1], 0).into(), target).await;
        let forwarder = forwarder.expect("a port");
        let forwarded = url.replacen(authority(&url), &forwarder.addr().to_string(), 1);
        (world.with(variable, &forwarded), forwarder)
    }

    /// Changes a setting.
    pub(crate) fn with(mut self, variable: &str, value: &str) -> Self {
        self.settings.retain(|(name, _)| name != variable);
        self.settings.push((variable.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn config(&self) -> Config {
        Config::load(None, self.settings.clone()).expect("the test's settings are valid")
    }

    /// Starts the service in this process, and waits until it consumes messages.
    pub(crate) async fn start(&self) -> App {
        let app = self.start_waiting().await;
        let started = tokio::time::timeout(Duration::from_secs(60), app.started()).await;
        started.expect("the service starts within a minute");
        app
    }

    /// Starts the service in this process. It may wait for its servers.
    pub(crate) async fn start_waiting(&self) -> App {
        App::start(self.config()).await.expect("the service starts")
    }

    /// Waits until the service is not ready for a reason that contains `text`, and returns it.
    pub(crate) async fn wait_for_reason(&self, app: &App, text: &str) -> String {
        super::wait_for(&format!("a reason with {text:?}"), || async {
            let (status, answer) = self.get(app, "/readyz").await;
            let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
            let reasons = answer["reasons"].as_array().cloned().unwrap_or_default();
            let mut reasons = reasons.iter().filter_map(serde_json::Value::as_str);
            reasons.find(|reason| status == 503 && reason.contains(text)).map(str::to_owned)
        })
        .await
    }

    /// Starts the service as a process of its own.
    pub(crate) fn spawn(&self) -> Process {
        self.spawn_with(&[])
    }

    /// Starts the service as a process of its own, with further settings.
    pub(crate) fn spawn_with(&self, further: &[(&str, String)]) -> Process {
        Process::spawn(&["serve"], &self.settings_with(further))
    }

    /// The settings of the service, and further ones, which come last and so take effect.
    pub(crate) fn settings_with(&self, further: &[(&str, String)]) -> Vec<(String, String)> {
        let mut settings = self.settings.clone();
        settings.extend(further.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        settings
    }

    /// Creates a signup whose initial job was refused.
    pub(crate) async fn failed_signup(&self) -> Uuid {
        let signup = Uuid::new_v4();
        self.fault(json!({ "kind": "status", "status": 422, "calls": 1 })).await;
        self.submit(&submitted(signup)).await;
        self.wait_for_job(signup, "initial", "failed").await;
        signup
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    pub(crate) async fn get(&self, app: &App, path: &str) -> (u16, String) {
        let response = self
            .http
            .get(format!("http://{}{path}", app.http_addr()))
            .send()
            .await
            .expect("the service answers");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }
}
