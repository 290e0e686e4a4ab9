//! The program as a person at a terminal meets it.

use crate::support::{World, program, wait_for};
use serde_json::json;
use std::{
    io::Write,
    process::{Output, Stdio},
};
use uuid::Uuid;

fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Output {
    let settings: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
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
    ] {
        assert_eq!(run(&[], &arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2_and_say_what_is_wrong() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let cases: [Case<'_>; 6] = [
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
    let enveloped = json!({ "specversion": "1.0", "id": "ce", "source": "/x", "type": "signup.extraction_confirmed",
        "data": crate::support::confirmed(signup) });
    let lines = format!("{}\n\n{enveloped}\n", crate::support::submitted(signup));
    let settings: Vec<_> = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut child =
        program(&settings).arg("publish").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
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
