//! `doctor`: what it reports in each wrong situation. Each test does what the report says, and then
//! the check passes.

use crate::support::{Servers, TempServer, World, free_addr, program, wait_for};
use lapin::{
    options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use std::process::Output;
use test_servers::{Postgres, RabbitMq};

/// The settings of a world for the program, and how to change them.
struct Doctor<'a> {
    world: &'a World,
    settings: Vec<(String, String)>,
}

/// What `doctor` printed.
struct Report {
    code: Option<i32>,
    lines: Vec<String>,
    errors: String,
}

impl Report {
    /// The lines of the check `name`.
    fn of(&self, name: &str) -> Vec<&str> {
        let is_of = |line: &&str| {
            let rest = line.get(6..).unwrap_or_default();
            rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        self.lines.iter().map(String::as_str).filter(is_of).collect()
    }

    /// The only line of the check `name`. It has to start with `label`.
    fn only(&self, name: &str, label: &str) -> &str {
        let lines = self.of(name);
        let [line] = lines[..] else { panic!("one line of {name} in {:#?}", self.lines) };
        assert!(line.starts_with(label), "{label} in {:#?}", self.lines);
        line
    }

    /// The fix of the only line of the check `name`, which has failed and contains `problem`.
    fn fix(&self, name: &str, problem: &str) -> &str {
        assert_eq!(self.code, Some(1), "{:#?}", self.lines);
        let line = self.only(name, "FAIL");
        assert!(line.contains(problem), "{problem} in {line}");
        line.split_once("; fix: ").expect("a fix").1
    }
}

impl<'a> Doctor<'a> {
    fn of(world: &'a World) -> Self {
        let url = format!("http://{}", world.simulator.addr());
        let settings = [
            ("DATABASE_URL", world.database_url.as_str()),
            ("AMQP_URL", world.amqp_url.as_str()),
            ("CUSTOMERIO_SITE_ID", "site"),
            ("CUSTOMERIO_API_KEY", "key"),
            ("CUSTOMERIO_TRACK_URL", url.as_str()),
            ("RETRY_DELAYS", "1s,2s"),
            ("HTTP_ADDR", "127.0.0.1:0"),
        ];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self { world, settings: settings.into_iter().map(owned).collect() }
    }

    /// Sets a setting, or removes it if the value is empty.
    fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(other, _)| other != name);
        if !value.is_empty() {
            self.settings.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Runs a subcommand with these settings.
    fn program(&self, arguments: &[&str]) -> Output {
        program(&self.settings).args(arguments).output().expect("the program runs")
    }

    fn succeed(&self, arguments: &[&str]) {
        let output = self.program(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
    }

    /// Creates the schema and the queues.
    fn set_up(self) -> Self {
        self.succeed(&["migrate"]);
        self.succeed(&["topology"]);
        self
    }

    fn report(&self) -> Report {
        self.report_with(&[])
    }

    fn report_with(&self, arguments: &[&str]) -> Report {
        let output = self.program(&[&["doctor"][..], arguments].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let lines = text(output.stdout).lines().map(str::to_owned).collect();
        Report { code: output.status.code(), lines, errors: text(output.stderr) }
    }

    /// A URL of the database of the world, with another user and database.
    fn database_url(&self, user: &str, database: &str) -> String {
        let (_, host) = self.world.database_url.split_once('@').expect("a URL with a user");
        let (host, _) = host.split_once('/').expect("a URL with a database");
        format!("postgres://{user}@{host}/{database}")
    }

    /// A URL of the virtual host of the world, with another user.
    fn amqp_url(&self, user: &str, vhost: &str) -> String {
        let (_, host) = self.world.amqp_url.split_once('@').expect("a URL with a user");
        let (host, _) = host.split_once('/').expect("a URL with a virtual host");
        format!("amqp://{user}@{host}/{vhost}")
    }
}

/// Executes statements as the owner of the database.
async fn execute(url: &str, sql: &str) {
    let mut owner = PgConnection::connect(url).await.expect("PostgreSQL answers");
    let result = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut owner).await;
    result.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The statements that a fix contains, from the first one of this kind.
fn statements<'a>(fix: &'a str, kind: &str) -> &'a str {
    &fix[fix.find(kind).unwrap_or_else(|| panic!("{kind} in {fix}"))..]
}

/// Sends a request with a JSON body to the management API.
async fn manage(world: &World, method: &str, path: &str, body: &Value) {
    let url = format!("{}/api/{path}", world.management_url);
    let request = world.http().request(method.parse().expect("a method"), url);
    let request = request.header("content-type", "application/json").body(body.to_string());
    let response = request.send().await.expect("RabbitMQ answers");
    assert!(response.status().is_success(), "{path}: {}", response.status());
}

/// Does what a fix with `rabbitmqctl set_permissions` says: the permissions are its last words.
async fn set_permissions(world: &World, user: &str, fix: &str) {
    let words: Vec<_> = fix.split('\'').collect();
    let [.., configure, _, write, _, read, _] = words[..] else { panic!("patterns in {fix}") };
    let body = json!({ "configure": configure, "write": write, "read": read });
    manage(world, "PUT", &format!("permissions/{}/{user}", world.vhost), &body).await;
}

/// A user of RabbitMQ with a name and a password of its own and these permissions.
async fn create_user(world: &World, configure: &str, write: &str, read: &str) -> String {
    let user = format!("user_{}", world.vhost);
    let body = json!({ "password": "right", "tags": "" });
    manage(world, "PUT", &format!("users/{user}"), &body).await;
    let body = json!({ "configure": configure, "write": write, "read": read });
    manage(world, "PUT", &format!("permissions/{}/{user}", world.vhost), &body).await;
    user
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_missing_schema_and_missing_queues() {
    let world = World::new().await;
    let doctor = Doctor::of(&world);
    let report = doctor.report();
    assert_eq!(report.fix("schema", "there is no schema yet"), "run `customerio-sync migrate`");
    let missing = report.of("topology");
    assert_eq!(missing.len(), 6 + 8, "exchanges and queues: {missing:#?}");
    let line = "FAIL  topology: the queue customerio-sync.retry.2s does not exist; fix: run \
        `customerio-sync topology`";
    assert!(missing.contains(&line), "{missing:#?}");
    assert_eq!(world.management("queues").await, json!([]), "doctor changes nothing");

    let report = doctor.set_up().report();
    assert_eq!(report.code, Some(0), "{:#?}", report.lines);
    report.only("schema", "ok    schema: version ");
    report.only("topology", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_nothing_else_about_a_running_service() {
    let world = World::new().await.with("RETRY_DELAYS", "1s,2s");
    let app = world.start().await;
    let doctor = Doctor::of(&world);
    let report = wait_for("the service to consume", || async {
        Some(doctor.report()).filter(|report| report.only("queues", "").starts_with("ok "))
    })
    .await;
    assert_eq!((report.code, report.errors.as_str()), (Some(0), ""), "{:#?}", report.lines);
    let names: Vec<_> =
        report.lines.iter().map(|line| line[6..].split(':').next().unwrap_or_default()).collect();
    let expected = [
        "configuration",
        "certificates",
        "mode",
        "database",
        "schema",
        "rights",
        "clock",
        "pooler",
        "broker",
        "topology",
        "permissions",
        "queues",
        "credentials",
    ];
    assert_eq!(names, expected);
    assert!(report.lines.iter().all(|line| line.starts_with("ok ")), "{:#?}", report.lines);
    report.only("broker", "ok    broker: RabbitMQ ");
    report.only("database", "ok    database: PostgreSQL ");
    app.stop().await;

    let report = doctor.report();
    assert_eq!(report.code, Some(0), "a warning is no failure");
    let line = report.only("queues", "warn");
    assert!(line.ends_with("; fix: start `customerio-sync serve`"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_prints_its_report_as_one_json_object() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).with("CUSTOMERIO_API_KEY", "").set_up();
    let report = doctor.report_with(&["--json"]);
    assert_eq!(report.code, Some(1));
    let object: Value = serde_json::from_str(&report.lines.join("\n")).expect("one JSON object");
    assert_eq!(object["ok"], false);
    let checks = object["checks"].as_array().expect("a list");
    let find = |name: &str| checks.iter().find(|check| check["name"] == name).expect("the check");
    assert_eq!(find("mode")["status"], "failed");
    assert!(find("mode")["fix"].as_str().expect("a fix").starts_with("set CUSTOMERIO_API_KEY"));
    assert_eq!(find("database")["status"], "passed");
    assert_eq!(find("database")["fix"], Value::Null);

    let report = doctor.with("CUSTOMERIO_API_KEY", "key").report_with(&["--json"]);
    let object: Value = serde_json::from_str(&report.lines.join("\n")).expect("one JSON object");
    assert_eq!((report.code, &object["ok"]), (Some(0), &json!(true)), "{object:#}");
    assert_eq!(report.errors, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_an_older_schema() {
    let world = World::new().await;
    let migrations = sqlx::migrate!("./migrations");
    let versions: Vec<_> = migrations.iter().map(|migration| migration.version).collect();
    let [.., before, last] = versions[..] else { panic!("there are migrations") };
    migrations.run_to(before, &world.pool).await.expect("migrated");
    let doctor = Doctor::of(&world);
    let report = doctor.report();
    let problem = format!("the schema is at version {before}; this program needs {last}");
    assert_eq!(report.fix("schema", &problem), "run `customerio-sync migrate`");
    doctor.succeed(&["migrate"]);
    doctor.report().only("schema", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_accepts_a_newer_schema_and_reports_broken_ones() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, \
        execution_time) VALUES (9999, 'later', true, '', 0)";
    execute(&world.database_url, newer).await;
    let report = doctor.report();
    let line = report.only("schema", "ok    schema: version 9999");
    assert!(line.contains("which is fine"), "{line}");
    execute(&world.database_url, "DELETE FROM _sqlx_migrations WHERE version = 9999").await;

    let unfinished = "UPDATE _sqlx_migrations SET success = false WHERE version = 1";
    execute(&world.database_url, unfinished).await;
    let report = doctor.report();
    assert!(report.fix("schema", "migration 1 did not finish").contains("version = 1"));
    let changed = "UPDATE _sqlx_migrations SET success = true, checksum = 'x' WHERE version = 1";
    execute(&world.database_url, changed).await;
    doctor.report().fix("schema", "migration 1 was applied with another content");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_database_that_does_not_exist_or_answer() {
    let world = World::new().await;
    let name = format!("{}_missing", world.vhost);
    let doctor = Doctor::of(&world);
    let url = doctor.database_url("postgres", &name);
    let doctor = doctor.with("DATABASE_URL", &url);
    let report = doctor.report();
    let fix = report.fix("database", "does not exist");
    let (statement, _) = statements(fix, "CREATE DATABASE").split_once(')').expect("brackets");
    execute(&world.database_url, statement).await;
    let report = doctor.report();
    report.only("database", "ok ");
    assert_eq!(report.fix("schema", "there is no schema"), "run `customerio-sync migrate`");
    doctor.set_up().report().only("schema", "ok ");

    let unused = free_addr();
    let doctor = Doctor::of(&world).with("DATABASE_URL", &format!("postgres://x@{unused}/x"));
    let report = doctor.report();
    let fix = report.fix("database", "onnection refused");
    assert!(fix.starts_with(&format!("start PostgreSQL at {unused}")), "{fix}");
    let secret = "postgres://x:hush@host:no-port/x";
    let report = Doctor::of(&world).with("DATABASE_URL", secret).report();
    let line = report.only("configuration", "FAIL");
    assert!(line.contains("postgres://user:password@host"), "{line}");
    assert!(!format!("{:?}{}", report.lines, report.errors).contains("hush"), "a password");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_refused_login_of_the_database() {
    let postgres = TempServer::<Postgres>::started();
    let world = World::on(Servers { database_url: postgres.url(), ..Servers::shared() }).await;
    let owner = &world.database_url;
    execute(owner, "CREATE ROLE app LOGIN SUPERUSER PASSWORD 'right'").await;
    // The role has to send its password; everybody else is trusted.
    execute(
        owner,
        "DO $$ BEGIN EXECUTE format('COPY (SELECT unnest(ARRAY[''host all app all \
            scram-sha-256'', ''host all all all trust''])) TO %L', current_setting('hba_file')); \
            END $$",
    )
    .await;
    execute(owner, "SELECT pg_reload_conf()").await;
    let doctor = Doctor::of(&world).set_up();
    let (wrong, right) = ("app:wrong", "app:right");
    let url = doctor.database_url(wrong, &world.vhost);
    let doctor = doctor.with("DATABASE_URL", &url);
    let report = wait_for("the password to be required", || async {
        let report = doctor.report();
        (report.code == Some(1)).then_some(report)
    })
    .await;
    let fix = report.fix("database", "(SQLSTATE 28P01)");
    assert!(fix.starts_with("correct the password of the user app in DATABASE_URL"), "{fix}");
    let url = doctor.database_url(right, &world.vhost);
    let doctor = doctor.with("DATABASE_URL", &url);
    doctor.report().only("database", "ok ");

    // The other fix: set the password in PostgreSQL.
    let statement = statements(fix, "ALTER ROLE").replace('…', "wrong");
    execute(owner, &statement).await;
    let url = doctor.database_url(wrong, &world.vhost);
    doctor.with("DATABASE_URL", &url).report().only("database", "ok ");
    let doctor = Doctor::of(&world);
    let url = doctor.database_url("nobody", &world.vhost);
    let report = doctor.with("DATABASE_URL", &url).report();
    let fix = report.fix("database", "(SQLSTATE 28000)");
    let (statement, _) = statements(fix, "CREATE ROLE").split_once(')').expect("brackets");
    execute(owner, &statement.replace('…', "right")).await;
    let doctor = Doctor::of(&world);
    let url = doctor.database_url("nobody", &world.vhost);
    doctor.with("DATABASE_URL", &url).report().only("database", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_missing_rights_and_a_read_only_database() {
    let world = World::new().await;
    let (owner, role) = (&world.database_url, format!("role_{}", world.vhost));
    let doctor = Doctor::of(&world).set_up();
    execute(owner, &format!("CREATE ROLE {role} LOGIN")).await;
    let url = doctor.database_url(&role, &world.vhost);
    let migrate = "CUSTOMERIO_SYNC__DATABASE__MIGRATE";
    let doctor = doctor.with("DATABASE_URL", &url).with(migrate, "false");
    let report = doctor.report();
    let line = report.only("schema", "FAIL");
    assert!(line.contains("permission denied") && line.contains("GRANT SELECT"), "{line}");
    let grants = statements(report.fix("rights", "lacks"), "GRANT");
    assert!(grants.contains("GRANT INSERT, SELECT ON audit_logs TO"), "{grants}");
    execute(owner, grants).await;
    let report = doctor.report();
    assert_eq!(report.code, Some(0), "{:#?}", report.lines);

    execute(owner, &format!("REVOKE INSERT ON sync_attempts FROM {role}")).await;
    let report = doctor.report();
    let fix = report.fix("rights", "INSERT on sync_attempts");
    execute(owner, statements(fix, "GRANT")).await;
    let report = doctor.report();
    report.only("rights", "ok ");

    let doctor = doctor.with(migrate, "true");
    let report = doctor.report();
    let fix = report.fix("schema", "may not create tables in the schema");
    execute(owner, statements(fix, "GRANT CREATE")).await;
    doctor.report().only("schema", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_read_only_database() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let owner = &world.database_url;
    let sql = format!("ALTER DATABASE {} SET default_transaction_read_only = on", world.vhost);
    execute(owner, &sql).await;
    let report = doctor.report();
    let fix = report.fix("database", "transactions are read-only");
    let mut session = PgConnection::connect(owner).await.expect("PostgreSQL answers");
    for statement in statements(fix, "SET").split("; ") {
        let executed = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut session);
        executed.await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    doctor.report().only("database", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rights_that_doctor_checks_cover_every_table() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let role = format!("role_{}", world.vhost);
    execute(&world.database_url, &format!("CREATE ROLE {role} LOGIN")).await;
    let url = doctor.database_url(&role, &world.vhost);
    let report = doctor.with("DATABASE_URL", &url).report();
    let line = report.only("rights", "FAIL");
    // A partition is read and written through its table.
    let sql = "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND NOT \
        relispartition AND relnamespace = 'public'::regnamespace";
    for row in world.rows(sql).await {
        let table: String = sqlx::Row::get(&row, 0);
        let is_named = [',', ';'].iter().any(|end| line.contains(&format!(" on {table}{end}")));
        assert!(is_named, "{table} in {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_broker_that_does_not_answer_or_accept_the_login() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let unused = free_addr();
    let doctor = doctor.with("AMQP_URL", &format!("amqp://x@{unused}/x"));
    let report = doctor.report();
    let fix = report.fix("broker", "onnection refused");
    assert!(fix.starts_with(&format!("start RabbitMQ at {unused}")), "{fix}");
    let report = doctor.with("AMQP_URL", "amqp:hush").report();
    let line = report.only("configuration", "FAIL");
    assert!(line.contains("AMQP_URL") && line.contains("amqp://user:password@host"), "{line}");
    assert!(!format!("{:?}{}", report.lines, report.errors).contains("hush"), "a password");

    let user = create_user(&world, ".*", ".*", ".*").await;
    let doctor = Doctor::of(&world);
    let url = doctor.amqp_url(&format!("{user}:wrong"), &world.vhost);
    let doctor = doctor.with("AMQP_URL", &url);
    let report = doctor.report();
    let fix = report.fix("broker", "ACCESS_REFUSED");
    assert!(fix.contains(&format!("rabbitmqctl change_password '{user}'")), "{fix}");
    let url = doctor.amqp_url(&format!("{user}:right"), &world.vhost);
    doctor.with("AMQP_URL", &url).report().only("broker", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_a_missing_virtual_host_and_a_missing_permission() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let name = format!("{}_missing", world.vhost);
    let url = doctor.amqp_url("guest:guest", &name);
    let doctor = doctor.with("AMQP_URL", &url);
    let report = doctor.report();
    let fix = report.fix("broker", "not found");
    assert!(fix.contains(&format!("rabbitmqctl add_vhost '{name}'")), "{fix}");
    manage(&world, "PUT", &format!("vhosts/{name}"), &json!({})).await;
    let report = doctor.report();
    report.only("broker", "ok ");
    assert!(report.of("topology").iter().all(|line| line.contains("does not exist")));
    doctor.set_up().report().only("topology", "ok ");
    let doctor = Doctor::of(&world);
    let url = doctor.amqp_url("guest:guest", "");
    let report = doctor.with("AMQP_URL", &url).report();
    assert!(report.only("configuration", "FAIL").contains("/%2f"), "{:#?}", report.lines);

    // Without the permission to read one queue, and then without any.
    let user = create_user(&world, ".*", ".*", r"^(?!.*mirror).*$").await;
    let doctor = Doctor::of(&world);
    let url = doctor.amqp_url(&format!("{user}:right"), &world.vhost);
    let doctor = doctor.with("AMQP_URL", &url);
    let report = doctor.report();
    let fix = report.fix("permissions", "reading from customerio-sync.failed.mirror");
    set_permissions(&world, &user, fix).await;
    wait_for("the permission to apply", || async {
        doctor.report().of("permissions")[0].starts_with("ok ").then_some(())
    })
    .await;
    manage(&world, "DELETE", &format!("permissions/{}/{user}", world.vhost), &json!({})).await;
    let report = wait_for("the virtual host to be refused", || async {
        let report = doctor.report();
        (report.code == Some(1)).then_some(report)
    })
    .await;
    set_permissions(&world, &user, report.fix("broker", "access to vhost")).await;
    wait_for("the virtual host to be allowed", || async {
        (doctor.report().code == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_only_warns_without_the_permission_to_configure() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let names = r"^(signup\..*|customerio-sync\..*)$";
    let user = create_user(&world, "^$", names, names).await;
    let url = doctor.amqp_url(&format!("{user}:right"), &world.vhost);
    let doctor = doctor.with("AMQP_URL", &url);
    let report = doctor.report();
    let fix = report.fix("topology", "ACCESS_REFUSED");
    assert!(fix.contains("or declare everything yourself and set topology.declare = false"));

    let doctor = doctor.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "false");
    let report = doctor.report();
    assert_eq!(report.code, Some(0), "{:#?}", report.lines);
    let line = report.only("topology", "warn");
    assert!(line.contains("cannot be compared without the configure permission"), "{line}");
    set_permissions(&world, &user, line).await;
    wait_for("the permission to apply", || async {
        doctor.report().of("topology")[0].starts_with("ok ").then_some(())
    })
    .await;

    let channel = world.channel().await;
    let options = QueueDeleteOptions::default();
    channel.queue_delete("customerio-sync.jobs".into(), options).await.expect("deleted");
    let report = doctor.report();
    let fix = report.fix("topology", "the queue customerio-sync.jobs does not exist");
    assert!(fix.contains("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE=true customerio-sync topology"));
    doctor.with("CUSTOMERIO_SYNC__TOPOLOGY__DECLARE", "true").succeed(&["topology"]);
    Doctor::of(&world).with("AMQP_URL", &url).report().only("topology", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_queues_with_other_arguments_one_line_each() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    let changed = Doctor::of(&world).with("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "7");
    let report = changed.report();
    let lines = report.of("topology");
    assert_eq!(lines.len(), 3, "one line per work queue: {lines:#?}");
    let is_complete = |line: &&str| {
        line.contains("x-delivery-limit")
            && line.contains("received '7'")
            && line.contains("fix: set topology.delivery_limit to the value that the queue has, or")
    };
    assert!(lines.iter().all(is_complete), "{lines:#?}");
    // One fix, and then the other.
    doctor.report().only("topology", "ok ");
    let channel = world.channel().await;
    for queue in [
        "customerio-sync.jobs",
        "customerio-sync.signup-submitted",
        "customerio-sync.extraction-confirmed",
    ] {
        let options = QueueDeleteOptions::default();
        channel.queue_delete(queue.into(), options).await.expect("deleted");
    }
    changed.succeed(&["topology"]);
    changed.report().only("topology", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_accepts_other_arguments_of_the_exchange_of_the_events() {
    let world = World::new().await;
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("alternate-exchange".into(), AMQPValue::LongString("amq.fanout".into()));
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let kind = lapin::ExchangeKind::Topic;
    channel
        .exchange_declare("signup.events".into(), kind, options, arguments)
        .await
        .expect("declared");
    let report = Doctor::of(&world).report();
    let lines = report.of("topology");
    assert!(!lines.iter().any(|line| line.contains("signup.events")), "{lines:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_what_the_management_api_shows() {
    let world = World::new().await;
    let doctor = Doctor::of(&world)
        .with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &world.management_url)
        .set_up();
    let report = doctor.report();
    for name in ["management", "arguments", "bindings", "policies", "alarms"] {
        report.only(name, "ok ");
    }
    assert_eq!(report.of("consumer_timeout").len(), 1, "{:#?}", report.lines);

    let policy = format!("policies/{}/short", world.vhost);
    let body = json!({
        "pattern": "^customerio-sync\\.jobs$",
        "definition": { "message-ttl": 60000 },
        "apply-to": "queues",
    });
    manage(&world, "PUT", &policy, &body).await;
    let report = wait_for("the policy to apply", || async {
        Some(doctor.report()).filter(|report| report.code == Some(1))
    })
    .await;
    let fix = report.fix("policies", "short sets message-ttl = 60000 on customerio-sync.jobs");
    assert!(fix.contains(&format!("clear_policy -p '{}' 'short'", world.vhost)), "{fix}");
    manage(&world, "DELETE", &policy, &json!({})).await;
    wait_for("the policy to be gone", || async {
        doctor.report().of("policies")[0].starts_with("ok ").then_some(())
    })
    .await;

    let channel = world.channel().await;
    let (queue, exchange) = ("customerio-sync.signup-submitted", "signup.events");
    let (key, arguments) = ("signup.submitted", FieldTable::default());
    let unbound = channel.queue_unbind(queue.into(), exchange.into(), key.into(), arguments);
    unbound.await.expect("unbound");
    let report = doctor.report();
    let fix = report.fix("bindings", "customerio-sync.signup-submitted is not bound to");
    assert_eq!(fix, "run `customerio-sync topology`");
    doctor.succeed(&["topology"]);
    doctor.report().only("bindings", "ok ");

    let hold = Doctor::of(&world)
        .with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &world.management_url)
        .with("CUSTOMERIO_SYNC__SYNC__HOLD", "1h");
    let report = hold.report();
    let lines = report.of("consumer_timeout");
    assert!(!lines[0].starts_with("ok ") && lines[0].contains("3660000"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_compares_arguments_over_the_management_api() {
    let world = World::new().await;
    let doctor = Doctor::of(&world)
        .with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &world.management_url)
        .set_up();
    let channel = world.channel().await;
    let queue = "customerio-sync.failed";
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(queue.into(), options, arguments).await.expect("declared");
    let report = doctor.report();
    report.fix("arguments", "customerio-sync.failed has");
    report.fix("bindings", "customerio-sync.failed is not bound");
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.expect("deleted");
    doctor.succeed(&["topology"]);
    let report = doctor.report();
    report.only("arguments", "ok ");
    report.only("bindings", "ok ");

    let wrong = world.management_url.replace("guest:guest", "guest:wrong");
    let doctor = doctor.with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &wrong);
    let report = doctor.report();
    assert!(report.fix("management", "refused").contains("broker.management_api"));
    let unused = format!("http://guest:hush@{}", free_addr());
    let doctor = doctor.with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &unused);
    let report = doctor.report();
    assert!(report.fix("management", "no answer").contains("rabbitmq_management"));
    assert!(!format!("{:?}", report.lines).contains("hush"), "a password");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_an_alarm_of_rabbitmq() {
    let rabbitmq = TempServer::<RabbitMq>::started();
    let world = World::on(Servers::with_rabbitmq(&rabbitmq)).await;
    let doctor = Doctor::of(&world)
        .with("CUSTOMERIO_SYNC__BROKER__MANAGEMENT_API", &world.management_url)
        .set_up();
    rabbitmq.set_memory_alarm(true).expect("the alarm changes");
    let report = wait_for("the alarm to be reported", || async {
        Some(doctor.report()).filter(|report| report.code == Some(1))
    })
    .await;
    let fix = report.fix("alarms", "has a memory alarm");
    assert!(fix.contains("vm_memory_high_watermark"), "{fix}");
    rabbitmq.set_memory_alarm(false).expect("the alarm changes");
    wait_for("the alarm to be gone", || async {
        doctor.report().of("alarms")[0].starts_with("ok ").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_mock_mode_and_a_missing_credential() {
    let world = World::new().await;
    let doctor =
        Doctor::of(&world).with("CUSTOMERIO_SITE_ID", "").with("CUSTOMERIO_API_KEY", "").set_up();
    let report = doctor.report();
    let fix = report.fix("mode", "mock mode");
    assert!(fix.starts_with("set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY"), "{fix}");
    assert!(report.of("credentials").is_empty(), "there are none to check");
    let report = doctor.report_with(&["--allow-mock"]);
    assert_eq!(report.code, Some(0), "{:#?}", report.lines);
    report.only("mode", "warn");

    let doctor = doctor.with("CUSTOMERIO_SITE_ID", "site");
    let report = doctor.report_with(&["--allow-mock"]);
    let fix = report.fix("mode", "CUSTOMERIO_API_KEY is missing, so nothing is consumed");
    assert!(fix.starts_with("set CUSTOMERIO_API_KEY, or customerio.allow_mock = true"), "{fix}");
    let doctor = doctor.with("CUSTOMERIO_SYNC__CUSTOMERIO__ALLOW_MOCK", "true");
    doctor.report_with(&["--allow-mock"]).only("mode", "warn");
    let report = doctor.with("CUSTOMERIO_API_KEY", "key").report();
    report.only("mode", "ok    mode: live");
    report.only("credentials", "ok ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_what_customerio_answers() {
    let world = World::new().await;
    let doctor = Doctor::of(&world).set_up();
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    let report = doctor.report();
    let fix = report.fix("credentials", "the credentials are refused");
    assert!(fix.starts_with("set CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY"), "{fix}");
    world.clear_faults().await;
    doctor.report().only("credentials", "ok ");

    let wrong = Doctor::of(&world).with("CUSTOMERIO_REGION", "eu");
    let report = wrong.report();
    assert_eq!(report.fix("credentials", "in the region \"us\""), "set CUSTOMERIO_REGION=us");
    wrong.with("CUSTOMERIO_REGION", "us").report().only("credentials", "ok ");

    world.fault(json!({ "kind": "status", "status": 503 })).await;
    assert!(doctor.report().fix("credentials", "status 503").contains("status.customer.io"));
    world.clear_faults().await;
    let unused = format!("http://{}", free_addr());
    let report = Doctor::of(&world).with("CUSTOMERIO_TRACK_URL", &unused).report();
    let fix = report.fix("credentials", "no connection to Customer.io");
    assert!(fix.starts_with(&format!("allow connections from this machine to {unused}")), "{fix}");
    // A server that is no Track API: the management API of RabbitMQ, without credentials.
    let (scheme, rest) = world.management_url.split_once("://").expect("a URL");
    let other = format!("{scheme}://{}", rest.split_once('@').expect("credentials").1);
    let report = Doctor::of(&world).with("CUSTOMERIO_TRACK_URL", &other).report();
    let fix = report.fix("credentials", "");
    assert!(fix.contains("CUSTOMERIO_TRACK_URL") || fix.contains("credentials"), "{fix}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_certificates_that_expired_or_cannot_be_read() {
    let world = World::new().await;
    let file = |name: &str| crate::support::root().join("tests/certificates").join(name);
    let setting = "CUSTOMERIO_SYNC__TLS__CA_FILE";
    let text = |name: &str| file(name).display().to_string();
    let doctor = Doctor::of(&world).set_up().with(setting, &text("expired.pem"));
    let report = doctor.report();
    let fix = report.fix("certificates", "expired.pem expired on 2021-01-01");
    assert!(fix.starts_with("renew the certificate in /"), "{fix}");
    let doctor = doctor.with(setting, &text("valid.pem"));
    let line = doctor.report().only("certificates", "ok ").to_owned();
    assert!(line.ends_with("valid.pem expires on 2099-01-01"), "{line}");
    let report = doctor.with(setting, &text("missing.pem")).report();
    report.fix("certificates", "missing.pem can't be read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_warns_about_a_key_with_an_old_name() {
    let world = World::new().await;
    let old = "CUSTOMERIO_SYNC__RECOVERY__SEND_AGAIN_AFTER";
    let report = Doctor::of(&world).set_up().with(old, "15m").report();
    let line = report.only("configuration", "warn");
    assert!(line.ends_with("; fix: rename it to \"recovery.resend_after\""), "{line}");
    assert_eq!((report.code, report.errors.as_str()), (Some(0), ""));
}
