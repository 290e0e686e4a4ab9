//! The program as a person at a terminal meets it.

use crate::support::{World, program, wait_for};
use serde_json::json;
use std::{
    io::Write,
    process::{Output, Stdio},
};
use uuid::Uuid;

fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    program(&settings).args(arguments).output().expect("it runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn every_subcommand_has_help_and_the_program_has_a_version() {
    for arguments in [
        vec!["--help"],
        vec!["--version"],
        vec!["serve", "--help"],
        vec!["migrate", "--help"],
        vec!["topology", "--help"],
        vec!["simulate", "--help"],
        vec!["publish", "--help"],
        vec!["failures", "--help"],
        vec!["failures", "retry", "--help"],
        vec!["jobs", "show", "--help"],
        vec!["stats", "--help"],
        vec!["doctor", "--help"],
    ] {
        assert_eq!(run(&[], &arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2_and_say_what_is_wrong() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let cases: [Case<'_>; 9] = [
        (&[], &["failures", "retry"], "name filters or jobs, or --all"),
        (&[], &["failures", "list", "--phase", "late"], "expected one of initial, enriched"),
        (&[("ADMIN_TOKENS", "ann:owner:hush")], &["serve"], "its role is unknown"),
        (&[], &["dance"], "unrecognized subcommand"),
        (&[], &["serve"], "DATABASE_URL is required"),
        (&[("CUSTOMERIO_SYNC__SYNC__SPEED", "9")], &["serve"], "unknown key \"sync.speed\""),
        (&[("RETRY_DELAYS", "soon")], &["migrate"], "retry.delays"),
        (&[("RUST_LOG", "=loud=")], &["migrate"], "telemetry.log"),
        (
            &[
                ("DATABASE_URL", "postgres://localhost/x"),
                ("AMQP_URL", "amqp://localhost"),
                ("CUSTOMERIO_SITE_ID", "s"),
                ("CUSTOMERIO_API_KEY", "k"),
                ("CUSTOMERIO_TRACK_URL", "nowhere"),
            ],
            &["serve"],
            "customerio.track_url",
        ),
    ];
    for (settings, arguments, expected) in cases {
        let output = run(settings, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}

#[tokio::test]
async fn migrate_applies_the_migrations_and_exits() {
    let world = World::new().await;
    let settings = [("DATABASE_URL", world.database_url.as_str())];
    assert!(run(&settings, &["migrate"]).status.success());
    assert!(run(&settings, &["migrate"]).status.success(), "a second time changes nothing");
    assert_eq!(world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await, 0);
}

#[tokio::test]
async fn publish_sends_samples_and_lines_that_the_service_takes() {
    let world = World::new().await;
    let app = world.start().await;
    let settings = [("AMQP_URL", world.amqp_url.as_str())];
    let output = run(&settings, &["publish", "--sample", "20"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("20 events published"), "{}", stderr(&output));

    let signup = Uuid::new_v4();
    let enveloped = json!({ "specversion": "1.0", "id": "ce", "source": "/x",
    "type": "signup.extraction_confirmed",
        "data": crate::support::confirmed(signup) });
    let lines = format!("{}\n\n{enveloped}\n", crate::support::submitted(signup));
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut child = program(&settings)
        .arg("publish")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(stderr(&output).contains("2 events published"), "{}", stderr(&output));

    wait_for("22 completed jobs", || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == 22).then_some(())
    })
    .await;
    app.stop().await;
}

#[tokio::test]
async fn publish_tells_the_line_that_is_no_event() {
    let world = World::new().await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "{}\n[1, 2]", crate::support::submitted(Uuid::new_v4())).expect("written");
    let settings = [("AMQP_URL", world.amqp_url.as_str())];
    let output = run(&settings, &["publish", file.path().to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 2: expected a JSON object"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_sees_and_mends_failures_from_a_terminal() {
    let world = World::new().await.with("ADMIN_TOKENS", "ann:operator:s3cret,vera:viewer:looks");
    let app = world.start().await;
    let signup = world.failed_signup().await;
    let id = world.job(signup, "initial").await.expect("the job")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let url = format!("http://{}", app.http_addr());
    let with = |token: &'static str, arguments: &[&str]| {
        let output =
            run(&[("CUSTOMERIO_SYNC_URL", &url), ("CUSTOMERIO_SYNC_TOKEN", token)], arguments);
        let (out, told) =
            (String::from_utf8(output.stdout.clone()).expect("text"), stderr(&output));
        (output.status.code(), out, told)
    };
    let ann = |arguments: &[&str]| {
        let (code, out, told) = with("s3cret", arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {told}");
        out
    };
    let list = ann(&["failures", "list", "--phase", "initial"]);
    assert!(
        list.contains(&id) && list.contains("1 of 1") && !list.contains("@example.com"),
        "{list}"
    );
    assert!(ann(&["failures", "list", "--search", "nobody"]).contains("0 of 0"));
    let groups = ann(&["failures", "groups"]);
    assert!(groups.contains("data") && groups.contains("Customer.io answered 422"), "{groups}");
    let groups: serde_json::Value =
        serde_json::from_str(&ann(&["failures", "groups", "--json"])).expect("JSON");
    assert_eq!(groups["items"][0]["count"], 1);
    let job = ann(&["jobs", "show", &id]);
    assert!(job.contains("0 of 5") && job.contains("customerio_sync_failed"), "{job}");
    let stats = ann(&["stats"]);
    assert!(
        stats
            .lines()
            .any(|line| line.starts_with(" jobs failed") && line.trim_end().ends_with('1')),
        "{stats}"
    );
    assert!(ann(&["failures", "retry", "--job", &id, "--dry-run"]).contains("eligible"));
    assert!(
        ann(&["failures", "dismiss", "--all", "--reason", "x", "--dry-run"]).contains("eligible")
    );

    assert_eq!(with("looks", &["failures", "retry", "--job", &id]).0, Some(1));
    assert!(
        with("looks", &["failures", "retry", "--job", &id]).2.contains("needs the role operator")
    );
    assert!(with("wrong", &["stats"]).2.contains("401 Unauthorized: the token is not known"));
    assert!(
        with("s3cret", &["stats", "--url", "http://127.0.0.1:1"]).2.contains("no answer: "),
        "nobody is there"
    );

    assert!(ann(&["failures", "retry", "--signup", &signup.to_string()]).contains("start again"));
    world.wait_for_job(signup, "initial", "completed").await;
    world.failed_signup().await;
    assert!(ann(&["failures", "retry", "--error-type", "other"]).contains("running"));
    wait_for("the bulk retry", || async {
        (world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'")
            .await
            == 2)
            .then_some(())
    })
    .await;
    world.failed_signup().await;
    assert_eq!(
        ann(&["failures", "dismiss", "--all", "--reason", "a test account"]).trim(),
        "1 dismissed"
    );
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_tells_what_does_not_hold_and_how_to_mend_it() {
    let world = World::new().await;
    let url = format!("http://{}", world.simulator.addr());
    let doctor = |extra: &[(&str, &str)]| {
        let mut settings = vec![
            ("DATABASE_URL", world.database_url.as_str()),
            ("AMQP_URL", world.amqp_url.as_str()),
            ("CUSTOMERIO_SITE_ID", "site"),
            ("CUSTOMERIO_API_KEY", "key"),
            ("CUSTOMERIO_TRACK_URL", url.as_str()),
            ("RETRY_DELAYS", "1s,2s"),
        ];
        settings.retain(|(name, _)| extra.iter().all(|(other, _)| other != name));
        settings.extend(extra);
        let output = run(&settings, &["doctor"]);
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, told) = doctor(&[]);
    assert_eq!(code, Some(1));
    for line in [
        "ok    configuration",
        "FAIL  database: there is no schema yet; mend: run `customerio-sync migrate` of this \
            version",
        "FAIL  broker: the queue customerio-sync.retry.2s does not exist",
        "ok    Customer.io",
    ] {
        assert!(told.lines().any(|one| one.starts_with(line)), "{line} in {told}");
    }
    assert_eq!(world.management("queues").await, json!([]), "nothing was changed");

    let settings = [
        ("DATABASE_URL", world.database_url.as_str()),
        ("AMQP_URL", world.amqp_url.as_str()),
        ("RETRY_DELAYS", "1s,2s"),
    ];
    assert!(run(&settings, &["migrate"]).status.success());
    assert!(run(&settings, &["topology"]).status.success());
    assert_eq!(
        doctor(&[]),
        (
            Some(0),
            "ok    configuration\nok    database\nok    broker\nok    Customer.io\n".to_owned()
        )
    );

    let (_, told) = doctor(&[("CUSTOMERIO_SYNC__TOPOLOGY__DELIVERY_LIMIT", "7")]);
    let differences = told
        .lines()
        .filter(|line| line.contains("x-delivery-limit") && line.contains("received '7'"));
    assert_eq!(differences.count(), 3, "each work queue has its line: {told}");
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("its address")
        .to_string();
    let (away, nowhere) = (format!("postgres://x@{unused}/x"), format!("amqp://x@{unused}/x"));
    let (code, told) =
        doctor(&[("DATABASE_URL", &away), ("AMQP_URL", &nowhere), ("CUSTOMERIO_REGION", "eu")]);
    assert_eq!(code, Some(1));
    for part in ["mend: start PostgreSQL", "mend: start RabbitMQ", "mend: set CUSTOMERIO_REGION=us"]
    {
        assert!(told.contains(part), "{part} in {told}");
    }
    let (_, told) = doctor(&[("CUSTOMERIO_API_KEY", "")]);
    assert!(told.contains("FAIL  Customer.io: mock mode"), "{told}");
    world.fault(json!({ "kind": "status", "status": 401 })).await;
    assert!(doctor(&[]).1.contains("FAIL  Customer.io: the credentials are refused"));
}
