//! The environment in which the service starts: servers that are not there yet, other schemas and
//! exchanges, addresses, poolers, and settings that cannot work.

use crate::support::{
    Forwarder, Process, Servers, Service, TempServer, World, address, authority, free_addr,
    program, program_at, submitted, wait_for,
};
use lapin::{
    ExchangeKind,
    options::ExchangeDeclareOptions,
    types::{AMQPValue, FieldTable},
};
use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Output},
};
use test_servers::{PgBouncer, PoolMode, Postgres};
use uuid::Uuid;

const SUBMITTED_QUEUE: &str = "customerio-sync.signup-submitted";

async fn an_event_is_synced(world: &World) {
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
}

fn run(settings: &[(String, String)], arguments: &[&str]) -> Output {
    program(settings).args(arguments).output().expect("the program runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Settings that suffice for `serve` to read its configuration, and further ones.
fn settings(further: &[(&str, &str)]) -> Vec<(String, String)> {
    let required = [
        ("DATABASE_URL", "postgres://localhost:1/x"),
        ("AMQP_URL", "amqp://localhost:1/x"),
        ("HTTP_ADDR", "127.0.0.1:0"),
    ];
    let all = required.iter().chain(further);
    all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A standby grants advisory locks, which exclude nobody on the primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_refused_until_it_is_promoted() {
    let primary = TempServer::<Postgres>::started();
    let servers = Servers { database_url: primary.url(), ..Servers::shared() };
    let world = World::on(servers).await;
    world.start().await.stop().await;
    let standby = TempServer::<Postgres>::new();
    let port = address(&primary.url()).port();
    tokio::task::block_in_place(|| standby.follow(port)).expect("the primary is copied");
    standby.start();
    let url = world.database_url.replace(authority(&primary.url()), authority(&standby.url()));
    let world =
        world.with("DATABASE_URL", &url).with("CUSTOMERIO_SYNC__DATABASE__MIGRATE", "false");
    let app = world.start_waiting().await;
    let reason = world.wait_for_reason(&app, "the server is a standby").await;
    assert!(reason.contains("set DATABASE_URL to the primary"), "{reason}");
    tokio::task::block_in_place(|| standby.promote()).expect("promoted");
    wait_for("the service to be ready", || async {
        (world.get(&app, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn servers_may_start_after_the_service() {
    let world = World::new().await;
    let (database, broker) = (free_addr(), free_addr());
    let at = |url: &str, addr: SocketAddr| url.replace(authority(url), &addr.to_string());
    let service = world.serve_with(&[
        ("DATABASE_URL", at(&world.database_url, database)),
        ("AMQP_URL", at(&world.amqp_url, broker)),
    ]);
    service.wait_for_reason(&["database: ", "DATABASE_URL"]).await;
    let _database = Forwarder::start(database, address(&world.database_url)).await.expect("free");
    service.wait_for_reason(&["broker: ", "AMQP_URL"]).await;
    let _broker = Forwarder::start(broker, address(&world.amqp_url)).await.expect("free");
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

#[tokio::test]
async fn a_refused_login_is_named_and_accepted_when_it_is_corrected() {
    let world = World::new().await;
    let user = format!("user-{}", world.vhost);
    world.permit(&user, "another-password", [".*"; 3]).await;
    let service = world.serve_with(&[("AMQP_URL", world.amqp_url_of(&user, "the-password"))]);
    let reason = service.wait_for_reason(&["broker: ", "AMQP_URL"]).await;
    assert!(!reason.contains("the-password"), "{reason}");
    world.permit(&user, "the-password", [".*"; 3]).await;
    service.wait_until_ready().await;
    drop(service);

    let role = format!("role_{}", world.vhost);
    let url = world.database_url.replace("postgres://postgres@", &format!("postgres://{role}@"));
    let service = world.serve_with(&[("DATABASE_URL", url)]);
    service.wait_for_reason(&["database: ", &role]).await;
    world.execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER")).await;
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

#[tokio::test]
async fn a_missing_virtual_host_or_database_is_awaited() {
    let world = World::new().await;
    let name = format!("late_{}", Uuid::new_v4().simple());
    let late = |url: &str| url.replace(&world.vhost, &name);
    let service = world.serve_with(&[("AMQP_URL", late(&world.amqp_url))]);
    service.wait_for_reason(&["broker: ", &name]).await;
    world.put(&format!("vhosts/{name}"), &serde_json::json!({})).await;
    service.wait_until_ready().await;
    drop(service);

    let service = world.serve_with(&[("DATABASE_URL", late(&world.database_url))]);
    service.wait_for_reason(&["database: ", &name]).await;
    world.execute(&format!("CREATE DATABASE {name}")).await;
    service.wait_until_ready().await;
}

#[tokio::test]
async fn the_service_runs_on_a_newer_schema() {
    let world = World::new().await;
    let migrate = || run(&world.settings_with(&[]), &["migrate"]);
    assert!(migrate().status.success());
    world
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
            VALUES (9999, 'of a later release', true, '', 0)",
        )
        .await;
    let output = migrate();
    assert!(output.status.success(), "{}", stderr(&output));
    let service = world.serve();
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

#[tokio::test]
async fn without_a_schema_nothing_is_consumed_until_it_is_there() {
    let world = World::new().await;
    let settings = world.settings_with(&[]);
    assert!(run(&settings, &["topology"]).status.success());
    let service = world.serve_with(&[("CUSTOMERIO_SYNC__DATABASE__MIGRATE", "false".to_owned())]);
    service.wait_for_reason(&["schema", "customerio-sync migrate"]).await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_depth(SUBMITTED_QUEUE, 1).await;
    service.process.wait_for_line("waiting to start: there is no schema yet").await;
    assert_eq!(world.queue(SUBMITTED_QUEUE).await.consumer_count(), 0);
    assert!(run(&settings, &["migrate"]).status.success());
    world.wait_for_job(signup, "initial", "completed").await;
    service.wait_until_ready().await;
}

#[tokio::test]
async fn an_ipv6_literal_is_connected_to() {
    let world = World::new().await;
    let any_port = "[::1]:0".parse().expect("an address");
    let Ok(broker) = Forwarder::start(any_port, address(&world.amqp_url)).await else {
        println!("this machine has no ::1");
        return;
    };
    let url = world.amqp_url.replace(authority(&world.amqp_url), &broker.addr().to_string());
    assert!(url.contains("@[::1]:"), "{url}");
    let service = world.serve_with(&[("AMQP_URL", url)]);
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

#[test]
fn a_malformed_url_exits_with_2_and_shows_no_password() {
    const SECRET: &str = "s3cr3t-word";
    let cases = [
        ("AMQP_URL", "amqp:user:s3cr3t-word@host"),
        ("AMQP_URL", "amqp//user:s3cr3t-word@host/x"),
        ("AMQP_URL", "ampq://user:s3cr3t-word@host/x"),
        ("AMQP_URL", "user:s3cr3t-word@host"),
        ("AMQP_URL", "amqp://user:s3cr3t-word@host:port/x"),
        ("AMQP_URL", "amqp://user:s3cr3t-word@[::1/x"),
        ("AMQP_URL", "amqp://user:s3cr3t-word@host/x?heartbeat=often"),
        ("DATABASE_URL", "postgres:user:s3cr3t-word@host/x"),
        ("DATABASE_URL", "postgers://user:s3cr3t-word@host/x"),
        ("DATABASE_URL", "user:s3cr3t-word@host/x"),
        ("DATABASE_URL", "postgres://user:s3cr3t-word@host:port/x"),
        ("DATABASE_URL", "postgres://user:s3cr3t-word@[::1/x"),
        ("DATABASE_URL", "postgres://user:s3cr3t-word@host/x?sslmode=perhaps"),
    ];
    for (variable, url) in cases {
        let own = if variable == "AMQP_URL" { "topology" } else { "migrate" };
        for subcommand in ["serve", "doctor", own] {
            let output = run(&settings(&[(variable, url)]), &[subcommand]);
            let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &stderr(&output);
            assert!(!printed.contains(SECRET), "{subcommand} {url}: {printed}");
            assert!(printed.contains(variable), "{subcommand} {url}: {printed}");
            // The checks of doctor report it.
            let code = if subcommand == "doctor" { output.status.code() } else { Some(2) };
            assert!(code != Some(0) && output.status.code() == code, "{subcommand} {url}");
        }
    }
}

#[test]
fn an_empty_virtual_host_exits_with_2_and_names_the_fix() {
    let output = run(&settings(&[("AMQP_URL", "amqp://guest:guest@localhost:1/")]), &["serve"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("/%2f"), "{}", stderr(&output));
    let url = "amqp://guest:guest@localhost:1";
    let output = run(&settings(&[("AMQP_URL", url)]), &["topology", "--print"]);
    assert!(output.status.success(), "without a slash it is the virtual host /");
}

/// A name whose first address accepts connections and never answers, as a dead load balancer does.
const NAME: &str = "first-is-dead.test";

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_when_the_first_is_dead() {
    let world = World::new().await;
    let Some(unshare) = unshare() else {
        println!("this machine does not permit a mount namespace");
        return;
    };
    let broker = address(&world.amqp_url);
    // It accepts connections and never answers.
    let dead = TcpListener::bind(("::1", broker.port()));
    if dead.is_err() || !broker.is_ipv4() {
        println!("RabbitMQ also listens on ::1, or the machine does not have it");
        return;
    }
    let mut hosts = tempfile::NamedTempFile::new().expect("a file");
    let content = format!("127.0.0.1 localhost\n::1 {NAME}\n127.0.0.1 {NAME}\n");
    hosts.write_all(content.as_bytes()).expect("written");
    let at = |url: &str, port: u16| url.replace(authority(url), &format!("{NAME}:{port}"));
    let further = [
        ("AMQP_URL", at(&world.amqp_url, broker.port())),
        ("PATH", std::env::var("PATH").expect("a path")),
    ];
    let spawn = |settings: &[(&str, String)]| {
        let mut command = program_at(Path::new("unshare"), &world.settings_with(settings));
        let script = r#"mount --bind "$1" /etc/hosts && exec "$2" serve"#;
        command.args(unshare).args(["sh", "-c", script, "sh"]).arg(hosts.path());
        Process::start(command, &[env!("CARGO_BIN_EXE_customerio-sync")])
    };
    let service = Service::at(spawn, &further);
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

/// The arguments with which `unshare` gives a program mounts of its own.
fn unshare() -> Option<&'static [&'static str]> {
    const CHOICES: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    CHOICES.into_iter().find(|arguments| {
        let mut command = Command::new("unshare");
        let mount = ["sh", "-c", "mount --bind /etc/hosts /etc/hosts"];
        let output = command.args(*arguments).args(mount).output();
        output.is_ok_and(|output| output.status.success())
    })
}

#[tokio::test]
async fn an_event_exchange_with_other_arguments_is_accepted() {
    let world = World::new().await;
    let channel = world.channel().await;
    let mut arguments = FieldTable::default();
    arguments.insert("alternate-exchange".into(), AMQPValue::LongString("unrouted".into()));
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare("signup.events".into(), ExchangeKind::Topic, options, arguments)
        .await
        .expect("declared");
    let service = world.serve();
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}

#[test]
fn settings_that_cannot_work_exit_with_2_and_are_named() {
    for (key, value) in [
        ("database.max_connections", "0"),
        ("database.acquire_timeout", "0s"),
        ("database.claim_lease", "0s"),
        // The time limit of a call is ten seconds.
        ("database.claim_lease", "10s"),
        ("broker.heartbeat", "0s"),
        ("broker.connect_timeout", "0s"),
        ("broker.prefetch", "0"),
        ("broker.publish_channels", "0"),
        ("topology.delivery_limit", "0"),
        ("topology.delivery_limit", "1"),
        ("customerio.timeout", "0s"),
        ("customerio.connect_timeout", "0s"),
        ("customerio.requests_per_second", "0"),
        ("breaker.probe_after", "0s"),
        ("breaker.probe_interval_max", "0s"),
        ("sync.batch_size", "0"),
        ("sync.batches_in_flight", "0"),
        ("sync.hold", "0s"),
        ("mirror.batch_size", "0"),
        ("mirror.compare_interval", "0s"),
        ("mirror.sweep_interval", "0s"),
        ("recovery.interval", "0s"),
        ("recovery.overdue_after", "0s"),
        ("recovery.resend_after", "0s"),
        ("recovery.batch_size", "0"),
        ("integrity.interval", "0s"),
        ("bulk_retry.jobs_per_second", "0"),
        ("http.request_timeout", "0s"),
        ("http.header_timeout", "0s"),
        ("http.connections", "0"),
    ] {
        let variable = format!("CUSTOMERIO_SYNC__{}", key.to_uppercase().replace('.', "__"));
        let output = run(&settings(&[(&variable, value)]), &["serve"]);
        assert_eq!(output.status.code(), Some(2), "{key} = {value}: {}", stderr(&output));
        assert!(stderr(&output).contains(key), "{key} = {value}: {}", stderr(&output));
    }
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let print = |prefetch: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "[broker]\nprefetch = {prefetch}").expect("written");
        let path = file.path().display().to_string();
        let output = run(&settings(&[]), &["topology", "--print", "--config", &path]);
        (output.status.code(), stderr(&output), path)
    };
    for prefetch in ["800.0", "8e2"] {
        let (code, error, _) = print(prefetch);
        assert_eq!(code, Some(0), "{error}");
    }
    for prefetch in ["800.5", "1e9", "-1.0"] {
        let (code, error, path) = print(prefetch);
        assert_eq!(code, Some(2), "{prefetch}: {error}");
        assert!(error.contains("broker.prefetch") && error.contains(&path), "{error}");
    }
}

/// A pooler in front of the database of a world, and the URL that leads through it.
fn pooler(world: &World, mode: PoolMode) -> (TempServer<PgBouncer>, String) {
    let server = address(&world.database_url);
    let pooler = TempServer::<PgBouncer>::new();
    let target = (server.ip().to_string(), server.port());
    pooler.configure((&target.0, target.1), mode).expect("the folder is ours");
    pooler.start();
    let url = world.database_url.replace(authority(&world.database_url), authority(&pooler.url()));
    (pooler, url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_session_mode_works() {
    let world = World::new().await;
    let (_pooler, url) = pooler(&world, PoolMode::Session);
    let service = world.serve_with(&[("DATABASE_URL", url)]);
    service.wait_until_ready().await;
    world.fault(serde_json::json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    an_event_is_synced(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_is_named() {
    let world = World::new().await;
    // The schema is there, so that only the mode is wrong.
    assert!(run(&world.settings_with(&[]), &["migrate"]).status.success());
    let (_pooler, url) = pooler(&world, PoolMode::Transaction);
    let service = world.serve_with(&[("DATABASE_URL", url.clone())]);
    service.wait_for_reason(&["database: ", "transaction mode", "session mode"]).await;
    service.process.wait_for_line("transaction mode").await;
    let output = run(&world.settings_with(&[("DATABASE_URL", url)]), &["doctor"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("session mode"), "{report}");
    drop(service);
    let service = world.serve();
    service.wait_until_ready().await;
    an_event_is_synced(&world).await;
}
