//! The migration of many jobs from the schema of another commit, while the program of that commit
//! runs.

use std::time::{Duration, Instant};

use crate::{
    arguments::Arguments,
    growth,
    report::Report,
    servers::{Servers, output},
    stage::Stage,
    statistics::percentile,
    steady,
};

/// Events per second.
const RATE: f64 = 1000.0;
/// Events that are published before the state of the migration is checked.
const PORTION: usize = 5000;
/// Time under load before the migration begins.
const LEAD: Duration = Duration::from_secs(10);

pub(crate) async fn measure(servers: &Servers, arguments: &Arguments, report: &mut Report) {
    let baseline = arguments.baseline.as_ref().expect("--against names the commit to migrate from");
    for &jobs in arguments.jobs.iter().filter(|jobs| **jobs > 0) {
        let stage = Stage::new(servers, baseline, &arguments.program).await;
        growth::populate(&stage, jobs).await;
        stage.execute("VACUUM ANALYZE").await;
        let (replica, url) = growth::serve(&stage, baseline);
        stage.wait_until_ready(&url).await;
        let mut migrate = stage.command(&arguments.program, "migrate");
        let began = stage.now().await;
        let migrating = tokio::spawn(async {
            tokio::time::sleep(LEAD).await;
            let began = Instant::now();
            let migrated = tokio::task::spawn_blocking(move || output(&mut migrate)).await;
            migrated.expect("migrated");
            began.elapsed().as_secs_f64()
        });
        let mut events = 0;
        let mut has_ended = false;
        // The last portion is published after the migration has ended.
        while !has_ended {
            has_ended = migrating.is_finished();
            steady::publish(&stage.amqp_url, RATE, PORTION).await;
            events += PORTION;
        }
        let took = migrating.await.expect("migrated");
        stage.wait_until_completed(events, began).await;
        drop(replica);
        let latencies = steady::latencies(&stage, began).await;
        let pause = stage.number(&longest_pause(began)).await;
        stage.remove().await;
        let what = format!("migration of {jobs} jobs under {RATE} events per second");
        report.add(&what, "this", "s", took);
        for (percent, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            let value = percentile(&latencies, share);
            report.add(&format!("{what}: {percent} to accepted"), "baseline", "ms", value);
        }
        report.add(&format!("{what}: longest time without a call"), "baseline", "ms", pause);
    }
}

/// The longest time between two calls since `began`, in milliseconds.
fn longest_pause(began: f64) -> String {
    format!(
        "SELECT max(pause) * 1000
        FROM (
            SELECT extract(epoch FROM started_at - lag(started_at) OVER calls) AS pause
            FROM sync_attempts
            WHERE started_at >= to_timestamp({began})
            WINDOW calls AS (ORDER BY started_at)
        ) AS pauses"
    )
}
