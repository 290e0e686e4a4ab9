//! The command line: usage, exit codes, and what each subcommand prints.

use crate::support::{World, confirmed, program, submitted, wait_for};
use customerio_sync::app::App;
use serde_json::{Value, json};
use std::{
    io::Write,
    process::{Command, Output, Stdio},
};
use uuid::Uuid;

/// The program with these environment variables and no others.
fn command(settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let settings: Vec<_> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut command = program(&settings);
    command.args(arguments);
    command
}

fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    command(settings, arguments).output().expect("the program runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

async fn wait_for_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == count).then_some(())
    })
    .await;
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
fn invalid_arguments_and_settings_exit_with_2_and_name_the_error() {
    type UsageCase<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let cases: [UsageCase<'_>; 10] = [
        (&[], &["failures", "retry"], "specify filters or jobs, or --all"),
        (&[], &["failures", "list", "--phase", "late"], "expected one of initial, enriched"),
        (&[("ADMIN_TOKENS", "ann:owner:hush")], &["serve"], "unknown role"),
        (&[("ADMIN_TOKENS", "ann:viewer:hush")], &["serve"], "entry 1: the token is too short"),
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
    assert!(run(&settings, &["migrate"]).status.success(), "a second run changes nothing");
    assert_eq!(world.count("SELECT count(*) FROM signup_customerio_sync_jobs").await, 0);
}

#[tokio::test]
async fn publish_sends_samples_and_input_lines_as_valid_events() {
    let world = World::new().await;
    let app = world.start().await;
    let settings = [("AMQP_URL", world.amqp_url.as_str())];
    let output = run(&settings, &["publish", "--sample", "20"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("20 events published"), "{}", stderr(&output));

    let signup = Uuid::new_v4();
    let cloud_event = json!({
        "specversion": "1.0",
        "id": "ce",
        "source": "/x",
        "type": "signup.extraction_confirmed",
        "data": confirmed(signup),
    });
    let lines = format!("{}\n\n{cloud_event}\n", submitted(signup));
    let mut child = command(&settings, &["publish"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("the program ends");
    assert!(stderr(&output).contains("2 events published"), "{}", stderr(&output));

    wait_for_completed(&world, 22).await;
    app.stop().await;
}

#[tokio::test]
async fn publish_names_the_line_that_is_not_an_event() {
    let world = World::new().await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "{}\n[1, 2]", submitted(Uuid::new_v4())).expect("written");
    let settings = [("AMQP_URL", world.amqp_url.as_str())];
    let output = run(&settings, &["publish", file.path().to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 2: expected a JSON object"), "{}", stderr(&output));
}

#[tokio::test]
async fn publish_fails_for_an_event_that_no_queue_takes() {
    let world = World::new().await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    for _ in 0..20 {
        writeln!(file, "{}", submitted(Uuid::new_v4())).expect("written");
    }
    let settings = [("AMQP_URL", world.amqp_url.as_str())];
    let path = file.path().to_str().expect("a path");
    let output = run(&settings, &["publish", "--routing-key", "signup.abandoned", path]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "exchange signup.events routes the routing key `signup.abandoned` to no queue";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

/// An operator's token and a viewer's.
const TOKENS: &str = "ann:operator:the-s3cret-of-ann,vera:viewer:the-s3cret-of-vera";

/// A terminal from which an operator controls the service at a URL.
struct Terminal(String);

impl Terminal {
    fn new(app: &App) -> Self {
        Self(format!("http://{}", app.http_addr()))
    }

    fn run_with_token(&self, token: &str, arguments: &[&str]) -> Output {
        let settings = [("CUSTOMERIO_SYNC_URL", self.0.as_str()), ("CUSTOMERIO_SYNC_TOKEN", token)];
        run(&settings, arguments)
    }

    /// Runs a subcommand as an operator and returns its output. It must succeed.
    fn run(&self, arguments: &[&str]) -> String {
        let output = self.run_with_token("the-s3cret-of-ann", arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_inspects_failures_from_a_terminal() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let signup = world.failed_signup().await;
    let job = world.job(signup, "initial").await.expect("the job");
    let id = job["id"].as_str().expect("an id");
    let terminal = Terminal::new(&app);

    let list = terminal.run(&["failures", "list", "--phase", "initial"]);
    assert!(
        list.contains(id) && list.contains("1 of 1") && !list.contains("@example.com"),
        "{list}"
    );
    assert!(terminal.run(&["failures", "list", "--search", "nobody"]).contains("0 of 0"));
    let groups = terminal.run(&["failures", "groups"]);
    assert!(groups.contains("data") && groups.contains("Customer.io answered 422"), "{groups}");
    let groups: Value =
        serde_json::from_str(&terminal.run(&["failures", "groups", "--json"])).expect("JSON");
    assert_eq!(groups["items"][0]["count"], 1);
    let job = terminal.run(&["jobs", "show", id]);
    assert!(job.contains("0 of 5") && job.contains("customerio_sync_failed"), "{job}");
    let stats = terminal.run(&["stats"]);
    let is_failed_count =
        |line: &str| line.starts_with(" jobs failed") && line.trim_end().ends_with('1');
    assert!(stats.lines().any(is_failed_count), "{stats}");
    assert!(terminal.run(&["failures", "retry", "--job", id, "--dry-run"]).contains("eligible"));
    let dismissal = ["failures", "dismiss", "--all", "--reason", "x", "--dry-run"];
    assert!(terminal.run(&dismissal).contains("eligible"));
    let list = terminal.run(&["failures", "list"]);
    assert!(list.contains("1 of 1"), "dry runs change nothing: {list}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_and_an_unreachable_service_are_reported() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let signup = world.failed_signup().await;
    let job = world.job(signup, "initial").await.expect("the job");
    let id = job["id"].as_str().expect("an id");
    let terminal = Terminal::new(&app);

    let viewer = terminal.run_with_token("the-s3cret-of-vera", &["failures", "retry", "--job", id]);
    assert_eq!(viewer.status.code(), Some(1));
    assert!(stderr(&viewer).contains("requires the role operator"));
    assert_eq!(world.job(signup, "initial").await.expect("the job")["status"], "failed");
    let unknown = terminal.run_with_token("wrong", &["stats"]);
    assert!(stderr(&unknown).contains("401 Unauthorized: unknown token"));
    let arguments = ["stats", "--url", "http://127.0.0.1:1"];
    let unreachable = terminal.run_with_token("the-s3cret-of-ann", &arguments);
    assert!(stderr(&unreachable).contains("no answer: "), "nothing listens there");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_retries_and_dismisses_failures_from_a_terminal() {
    let world = World::new().await.with("ADMIN_TOKENS", TOKENS);
    let app = world.start().await;
    let terminal = Terminal::new(&app);

    let signup = world.failed_signup().await;
    let retry = terminal.run(&["failures", "retry", "--signup", &signup.to_string()]);
    assert!(retry.contains("restart with a first attempt"));
    world.wait_for_job(signup, "initial", "completed").await;
    world.failed_signup().await;
    assert!(terminal.run(&["failures", "retry", "--error-type", "other"]).contains("running"));
    wait_for_completed(&world, 2).await;
    world.failed_signup().await;
    let dismissal = ["failures", "dismiss", "--all", "--reason", "a test account"];
    assert_eq!(terminal.run(&dismissal).trim(), "1 dismissed");
    app.stop().await;
}
