//! A world for one test: a fresh database, a fresh virtual host, a simulator, and the service.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use customerio_sync::{
    app::App,
    config::Config,
    event::{self, EventType, RawEvent},
    job::{Attempt, Outcome},
    ledger::{Arrival, Opened, Settlement, Source},
    retry::Verdict,
    simulator::Simulator,
};
use futures_util::StreamExt;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Queue,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions,
        ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, PgPool, Row, postgres::PgRow};
use uuid::Uuid;

/// Short tiers, so that a whole ladder takes two seconds.
pub(crate) const SHORT_LADDER: &str = "200ms,300ms,400ms,500ms,600ms";

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn required(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set; run the tests with `./dev test`"))
}

/// The servers of a world.
#[derive(Clone)]
pub(crate) struct Servers {
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) management_url: String,
}

impl Servers {
    /// The ones that all tests share.
    pub(crate) fn shared() -> Self {
        Self {
            database_url: required("DATABASE_URL"),
            amqp_url: required("AMQP_URL"),
            management_url: required("RABBITMQ_MANAGEMENT_URL"),
        }
    }

    /// The same with another RabbitMQ.
    pub(crate) fn with_rabbitmq(rabbitmq: &OwnServer) -> Self {
        Self {
            amqp_url: rabbitmq.url(),
            management_url: rabbitmq.management_url(),
            ..Self::shared()
        }
    }
}

pub(crate) struct World {
    pub(crate) database_url: String,
    pub(crate) amqp_url: String,
    pub(crate) vhost: String,
    pub(crate) management_url: String,
    pub(crate) pool: PgPool,
    pub(crate) simulator: Simulator,
    /// For all channels of the test; made again when it is lost.
    connection: tokio::sync::Mutex<Option<Connection>>,
    http: reqwest::Client,
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

    /// A world on these servers.
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
            ("CUSTOMERIO_SYNC__GATE__PROBE_AFTER", "50ms".to_owned()),
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

    /// The same world with another setting.
    pub(crate) fn with(mut self, variable: &str, value: &str) -> Self {
        self.settings.retain(|(name, _)| name != variable);
        self.settings.push((variable.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn config(&self) -> Config {
        Config::load(None, self.settings.clone()).expect("the test's settings are valid")
    }

    /// Starts the service in this process.
    pub(crate) async fn start(&self) -> App {
        App::start(self.config()).await.expect("the service starts")
    }

    /// Starts the service as a process of its own, its log in a file.
    pub(crate) fn spawn(&self) -> Process {
        self.spawn_with(&[])
    }

    /// The same, with other settings than the world's.
    pub(crate) fn spawn_with(&self, others: &[(&str, String)]) -> Process {
        let mut settings = self.settings.clone();
        settings.extend(others.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Process::spawn(&["serve"], &settings)
    }

    // -------------------- RabbitMQ

    pub(crate) async fn channel(&self) -> Channel {
        let mut connection = self.connection.lock().await;
        if !connection.as_ref().is_some_and(|connection| connection.status().connected()) {
            let properties = ConnectionProperties::default();
            *connection = Some(
                Connection::connect(&self.amqp_url, properties).await.expect("RabbitMQ answers"),
            );
        }
        let channel =
            connection.as_ref().expect("just made").create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        channel
    }

    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) {
        let channel = self.channel().await;
        publish_on(&channel, exchange, routing_key, body, properties).await;
    }

    /// Publishes an event as upstream services do.
    pub(crate) async fn publish_event(&self, routing_key: &str, body: &Value) {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        self.publish("signup.events", routing_key, body.to_string().as_bytes(), properties).await;
    }

    pub(crate) async fn submit(&self, event: &Value) {
        self.publish_event("signup.submitted", event).await;
    }

    pub(crate) async fn confirm(&self, event: &Value) {
        self.publish_event("signup.extraction_confirmed", event).await;
    }

    /// Messages that are ready in a queue.
    pub(crate) async fn depth(&self, queue: &str) -> u32 {
        self.queue(queue).await.message_count()
    }

    pub(crate) async fn wait_for_depth(&self, queue: &str, depth: u32) {
        let what = format!("{depth} messages in {queue}");
        wait_for(&what, || async { (self.depth(queue).await == depth).then_some(()) }).await;
    }

    /// What RabbitMQ tells of a queue, as it is at this moment.
    pub(crate) async fn queue(&self, queue: &str) -> Queue {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        channel
            .queue_declare(queue.into(), options, FieldTable::default())
            .await
            .expect("the queue is there")
    }

    /// Takes the next message of a queue away.
    pub(crate) async fn take(&self, queue: &str) -> Option<Taken> {
        let channel = self.channel().await;
        let message = channel
            .basic_get(queue.into(), BasicGetOptions::default())
            .await
            .expect("the queue is there")?;
        message.delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
        Some(Taken::new(message.delivery))
    }

    /// Waits for the next message of a queue, and takes it away.
    pub(crate) async fn next(&self, queue: &str) -> Taken {
        let what = format!("a message in {queue}");
        wait_for(&what, || async { self.take(queue).await }).await
    }

    /// A queue bound to `exchange`, whose messages are collected from now on.
    pub(crate) async fn listen(&self, exchange: &str, binding_key: &str) -> Listener {
        let channel = self.channel().await;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .expect("declared");
        let name = queue.name().clone();
        channel
            .queue_bind(
                name.clone(),
                exchange.into(),
                binding_key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .expect("bound");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        Listener(
            channel
                .basic_consume(name, "".into(), options, FieldTable::default())
                .await
                .expect("consuming"),
        )
    }

    /// Every queue of the service, empty. The mirror is among them.
    pub(crate) async fn wait_until_all_queues_are_empty(&self) {
        wait_for("all queues to be empty", || async {
            let queues = self.management("queues").await;
            for queue in queues.as_array().expect("a list") {
                let name = queue["name"].as_str().expect("a name");
                if self.depth(name).await > 0 {
                    return None;
                }
            }
            // Counts of the management API lag behind, but they see what is unacknowledged or on
            // its way out, too.
            let total = |queue: &Value| queue["messages"].as_u64().unwrap_or(1);
            (queues.as_array().expect("a list").iter().map(total).sum::<u64>() == 0).then_some(())
        })
        .await;
    }

    /// An answer of the management API about this virtual host.
    pub(crate) async fn management(&self, what: &str) -> Value {
        let url = format!("{}/api/{what}/{}", self.management_url, self.vhost);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        serde_json::from_str(&answer.text().await.expect("an answer")).expect("JSON")
    }

    // -------------------- PostgreSQL

    pub(crate) async fn rows(&self, sql: &'static str) -> Vec<PgRow> {
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The job of a signup and phase, as JSON with the columns' names.
    pub(crate) async fn job(&self, signup: Uuid, phase: &str) -> Option<Value> {
        let sql = "SELECT to_jsonb(j) AS j FROM signup_customerio_sync_jobs j WHERE signup_id = \
            $1 AND sync_phase = $2";
        let row =
            sqlx::query(sql).bind(signup).bind(phase).fetch_optional(&self.pool).await.ok()??;
        Some(row.get("j"))
    }

    pub(crate) async fn wait_for_job(&self, signup: Uuid, phase: &str, status: &str) -> Value {
        let what = format!("the {phase} job to be {status}");
        wait_for(&what, || async {
            self.job(signup, phase).await.filter(|job| job["status"] == status)
        })
        .await
    }

    /// Waits until the job has failed at least once and waits for a retry.
    pub(crate) async fn wait_for_retry(&self, signup: Uuid, phase: &str) -> Value {
        let is_waiting = |job: &Value| job["status"] == "pending" && job["attempt_count"] != 0;
        wait_for("the job to wait for a retry", || async {
            self.job(signup, phase).await.filter(is_waiting)
        })
        .await
    }

    pub(crate) async fn signup(&self, signup: Uuid) -> Value {
        let row = sqlx::query("SELECT to_jsonb(s) AS s FROM signups s WHERE id = $1")
            .bind(signup)
            .fetch_one(&self.pool);
        row.await.expect("the signup is there").get("s")
    }

    pub(crate) async fn audit(&self, action: &str) -> Vec<Value> {
        let sql = "SELECT to_jsonb(a) AS a FROM audit_logs a WHERE action = $1 ORDER BY id";
        let rows =
            sqlx::query(sql).bind(action).fetch_all(&self.pool).await.expect("the audit log");
        rows.iter().map(|row| row.get("a")).collect()
    }

    /// The mirrored failures, oldest first.
    pub(crate) async fn failures(&self) -> Vec<Value> {
        let rows = self
            .rows("SELECT to_jsonb(f) AS f FROM sync_failures f ORDER BY mirrored_at, message_id")
            .await;
        rows.iter().map(|row| row.get("f")).collect()
    }

    pub(crate) async fn wait_for_failures(&self, count: usize) -> Vec<Value> {
        let what = format!("{count} mirrored failures");
        wait_for(&what, || async {
            Some(self.failures().await).filter(|failures| failures.len() >= count)
        })
        .await
    }

    // -------------------- simulator

    pub(crate) async fn sim(&self, path: &str) -> Value {
        let url = format!("http://{}/_sim/{path}", self.simulator.addr());
        let answer = self.http.get(url).send().await.expect("the simulator answers");
        serde_json::from_str(&answer.text().await.expect("an answer")).expect("JSON")
    }

    pub(crate) async fn fault(&self, fault: Value) {
        let url = format!("http://{}/_sim/faults", self.simulator.addr());
        let request =
            self.http.post(url).header("content-type", "application/json").body(fault.to_string());
        let answer = request.send().await.expect("the simulator answers");
        assert!(answer.status().is_success(), "{fault}: {}", answer.status());
    }

    pub(crate) async fn clear_faults(&self) {
        let url = format!("http://{}/_sim/faults", self.simulator.addr());
        self.http.delete(url).send().await.expect("the simulator answers");
    }

    pub(crate) async fn calls(&self) -> Vec<Value> {
        self.sim("calls").await.as_array().expect("a list").clone()
    }

    /// When the calls came, in order.
    pub(crate) async fn call_times(&self) -> Vec<chrono::DateTime<chrono::Utc>> {
        let at = |call: &Value| call["at"].as_str()?.parse().ok();
        let mut times: Vec<_> =
            self.calls().await.iter().map(|call| at(call).expect("a time")).collect();
        times.sort_unstable();
        times
    }

    pub(crate) async fn events(&self) -> Vec<Value> {
        self.sim("events").await.as_array().expect("a list").clone()
    }

    /// A request to the admin API: the status and the JSON of the answer.
    pub(crate) async fn api(
        &self,
        app: &App,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let url = format!("http://{}/api/v1/signups/customerio{path}", app.http_addr());
        let mut request = self.http.request(method.parse().expect("a method"), url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.expect("the service answers");
        let status = answer.status().as_u16();
        let text = answer.text().await.expect("an answer");
        (
            status,
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("{method} {path}: {error}: {text}")),
        )
    }

    /// A reading request that has to succeed.
    pub(crate) async fn read(&self, app: &App, path: &str) -> Value {
        let (status, answer) = self.api(app, "GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {answer}");
        answer
    }

    /// An action that has to succeed.
    pub(crate) async fn act(&self, app: &App, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.api(app, "POST", path, body).await;
        assert!((200..300).contains(&status), "POST {path}: {status} {answer}");
        answer
    }

    /// A signup whose initial job Customer.io has refused.
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
        let answer = self
            .http
            .get(format!("http://{}{path}", app.http_addr()))
            .send()
            .await
            .expect("the service answers");
        (answer.status().as_u16(), answer.text().await.expect("an answer"))
    }
}

pub(crate) async fn publish_on(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let published =
        channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await;
    let confirmed = published.expect("published").await.expect("confirmed");
    assert!(
        matches!(confirmed, lapin::Confirmation::Ack(None)),
        "{exchange}/{routing_key}: {confirmed:?}"
    );
}

/// Messages that were published to an exchange since.
pub(crate) struct Listener(lapin::Consumer);

impl Listener {
    pub(crate) async fn next(&mut self) -> Taken {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message in time");
        Taken::new(next.expect("the consumer goes on").expect("a delivery"))
    }
}

/// A message that was taken from a queue.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Taken {
    pub(crate) fn new(delivery: lapin::message::Delivery) -> Self {
        Self {
            routing_key: delivery.routing_key.to_string(),
            properties: delivery.properties,
            body: delivery.data,
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    pub(crate) fn header(&self, key: &str) -> Option<String> {
        match self.properties.headers().as_ref()?.inner().get(key)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    pub(crate) fn message_id(&self) -> String {
        self.properties.message_id().as_ref().expect("a message id").to_string()
    }
}

/// Asks until there is an answer.
pub(crate) async fn wait_for<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let asking = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(25));
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
}

// -------------------- events

pub(crate) fn submitted(signup: Uuid) -> Value {
    json!({
        "event_id": Uuid::new_v4(), "occurred_at": "2025-02-18T12:00:00Z", "signup_id": signup,
        "operator_id": "op-12", "operator_name": "Acme Sports",
        "customer": { "id": format!("c-{signup}"), "email": format!("{signup}@example.com"),
        "first_name": "Ann",
                      "last_name": "Lee", "phone": "+15550100", "state": "NJ" },
        "attributes": { "plan": "gold" }
    })
}

pub(crate) fn confirmed(signup: Uuid) -> Value {
    json!({
        "event_id": Uuid::new_v4(), "occurred_at": "2025-02-18T12:03:00Z", "signup_id": signup,
        "extraction_id": "ex-5",
        "bet_slip": { "bet_amount": 50.0, "team_bet_on": "Lakers", "odds": "+150",
        "confidence": 0.97 }
    })
}

/// A submission as the ledger is told of it.
pub(crate) fn arrival(event: &Value, redelivered: bool) -> Arrival {
    let body = event.to_string();
    let raw = RawEvent {
        event_type: EventType::Submitted,
        content_type: None,
        message_id: None,
        body: body.as_bytes(),
    };
    Arrival {
        source: Source::Event(Box::new(event::parse(raw).expect("valid"))),
        redelivered,
        traceparent: None,
    }
}

/// How a job that was opened is settled when Customer.io took it.
pub(crate) fn completion(opened: &Opened) -> Settlement {
    let Opened::Claimed(work) = opened else { panic!("claimed, not {opened:?}") };
    let attempt = Attempt {
        started_at: chrono::Utc::now(),
        duration: Duration::from_millis(1),
        http_status: Some(200),
        outcome: Outcome::Accepted,
    };
    Settlement {
        job: work.job.clone(),
        contact_id: Some("c".to_owned()),
        attempt,
        verdict: Verdict::Complete,
    }
}

/// The person identifier of [`submitted`].
pub(crate) fn contact(signup: Uuid) -> String {
    format!("c-{signup}")
}

// -------------------- servers

/// A server of a test's own, so that it can be stopped, killed and started again.
pub(crate) struct OwnServer {
    kind: &'static str,
    folder: tempfile::TempDir,
}

impl OwnServer {
    /// Starts a `rabbitmq` or a `postgres`.
    pub(crate) fn start(kind: &'static str) -> Self {
        let server = Self::not_started(kind);
        server.run("start", &[]);
        server
    }

    pub(crate) fn not_started(kind: &'static str) -> Self {
        let server = Self { kind, folder: tempfile::tempdir().expect("a folder") };
        // PostgreSQL runs as an ordinary user where the tests run as root.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(server.folder.path(), open).expect("the folder is ours");
        server
    }

    /// The folder it keeps everything in.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join(self.kind)
    }

    /// `./dev server KIND WHAT FOLDER ARGUMENTS`.
    pub(crate) fn run(&self, what: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(root().join("dev"));
        let output =
            command.args(["server", self.kind, what]).arg(self.path()).args(arguments).output();
        let output = output.expect("dev is there");
        assert!(
            output.status.success(),
            "{} {what}: {}",
            self.kind,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        self.run("url", &[])
    }

    pub(crate) fn management_url(&self) -> String {
        self.run("management_url", &[])
    }

    /// Stops it as it wants to be stopped.
    pub(crate) fn stop(&self) {
        tokio::task::block_in_place(|| self.run("stop", &[]));
    }

    pub(crate) fn start_again(&self) {
        tokio::task::block_in_place(|| self.run("start", &[]));
    }

    pub(crate) fn restart(&self) {
        self.stop();
        self.start_again();
    }

    /// Allows RabbitMQ so little memory that it blocks every connection that publishes, or as much
    /// as it has by default.
    pub(crate) fn set_memory_alarm(&self, is_on: bool) {
        let share = if is_on { "0.0001" } else { "0.4" };
        tokio::task::block_in_place(|| self.run("ctl", &["set_vm_memory_high_watermark", share]));
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        if Path::exists(&self.path()) {
            self.run("stop", &[]);
        }
    }
}

// -------------------- processes

/// The program, running as a process of its own.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Process {
    pub(crate) fn spawn(arguments: &[&str], settings: &[(String, String)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("log");
        let file = std::fs::File::create(&log).expect("a log file");
        let child = program(settings)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .expect("the program starts");
        Self { child, log, _folder: folder }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// Waits for a line of the log that holds `text`.
    pub(crate) async fn wait_for_line(&self, text: &str) -> String {
        let find = || self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
        wait_for(&format!("a log line with {text:?}"), || std::future::ready(find())).await
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// SIGTERM, and how it ended.
    pub(crate) async fn terminate(&mut self) -> std::process::ExitStatus {
        let killed =
            Command::new("kill").arg(self.child.id().to_string()).status().expect("kill is there");
        assert!(killed.success(), "the process is there to be stopped");
        wait_for("the process to end", || {
            std::future::ready(self.child.try_wait().expect("waited for"))
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with these settings and no others.
pub(crate) fn program(settings: &[(String, String)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_customerio-sync"));
    command.env_clear().envs(settings.iter().cloned());
    command
}

/// An address that nothing listens on.
pub(crate) fn free_addr() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
