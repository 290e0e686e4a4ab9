//! The drain and the reads of operators with many jobs in the tables.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    arguments::Arguments,
    drain::report_drain,
    report::Report,
    servers::Servers,
    stage::{Program, Stage, folder},
    statistics::median,
};

const API: &str = "/api/v1/signups/customerio";
/// The reads of the page and of a scrape.
const READS: [&str; 11] = [
    "/sync-failures",
    "/sync-failures?offset=10000",
    "/sync-failures?offset=90000",
    "/sync-failures?errorType=network",
    "/sync-failures?syncPhase=enriched&errorType=other",
    "/sync-failures?search=person77777",
    "/sync-failures?search=example.com",
    "/failure-groups",
    "/stats",
    "/integrity",
    "/metrics",
];
const REPEATS: usize = 9;
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Jobs per statement.
const PORTION: u64 = 100_000;

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    for &jobs in &arguments.jobs {
        let stage = Stage::new(servers, &arguments.program, &arguments.program).await;
        populate(&stage, jobs).await;
        sum_counts(&stage, arguments).await;
        stage.execute("VACUUM ANALYZE").await;
        reads(&stage, arguments, jobs, report).await;
        for _ in 0..arguments.rounds {
            stage.clear_simulator().await;
            stage.publish(&arguments.program, arguments.events);
            let start = || vec![serve(&stage, &arguments.program).0];
            let what = format!("drain with {jobs} jobs in the tables");
            report_drain(servers, &stage, (&what, "this"), arguments.events, start, report).await;
        }
        stage.remove().await;
    }
}

/// Adds jobs with their signups, attempts and audit entries.
pub(crate) async fn populate(stage: &Stage<'_>, jobs: u64) {
    let sql = std::fs::read_to_string(folder("growth.sql")).expect("the file can be read");
    for first in (1..=jobs).step_by(PORTION as usize) {
        let last = (first + PORTION - 1).min(jobs);
        let portion = sql.replace(":first", &first.to_string()).replace(":last", &last.to_string());
        stage.execute(&portion).await;
    }
}

/// Lets a replica sum the counts that the triggers have written for each row.
async fn sum_counts(stage: &Stage<'_>, arguments: &Arguments) {
    let settings = [
        ("CUSTOMERIO_SYNC__INTEGRITY__INTERVAL", "1s"),
        ("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "24h"),
    ];
    let (replica, _) = stage.serve_with(&arguments.program, &settings);
    while stage.number("SELECT count(*) FROM open_counts").await > 1000.0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    drop(replica);
}

/// Starts a replica. The failures of the tables are not in the failure queue: a sweep would publish
/// them.
pub(crate) fn serve(stage: &Stage<'_>, program: &Path) -> (Program, String) {
    stage.serve_with(
        program,
        &[
            ("CUSTOMERIO_SYNC__MIRROR__COMPARE_INTERVAL", "24h"),
            ("CUSTOMERIO_SYNC__MIRROR__SWEEP_INTERVAL", "24h"),
        ],
    )
}

async fn reads(stage: &Stage<'_>, arguments: &Arguments, jobs: u64, report: &mut Report) {
    let (replica, url) = serve(stage, &arguments.program);
    stage.wait_until_ready(&url).await;
    for read in READS {
        let path = if read == "/metrics" { read.to_owned() } else { format!("{API}{read}") };
        let mut times = Vec::new();
        for _ in 0..REPEATS {
            let began = Instant::now();
            let response = stage.http.get(format!("{url}{path}")).send().await.expect("an answer");
            let status = response.status();
            response.bytes().await.expect("a body");
            assert!(status.is_success(), "{path}: {status}");
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        report.add(&format!("{read} with {jobs} jobs"), "this", "ms", median(&times));
    }
    drop(replica);
}
