//! Many jobs in the tables: what operators ask for is found without reading them all.

use crate::support::{World, wait_for};
use sqlx::Executor;
use std::path::PathBuf;

/// How often the jobs were read from end to end, and how often an index was used.
async fn scans(world: &World) -> (i64, i64) {
    let of = |column: &'static str| match column {
        "seq" => {
            "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'"
        }
        _ => {
            "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'"
        }
    };
    (world.count(of("seq")).await, world.count(of("index")).await)
}

#[tokio::test]
async fn no_question_of_an_operator_reads_all_jobs() {
    let world = World::new().await;
    // Its sessions hand over what they have counted when they end; nothing of the empty tables is
    // left to be counted.
    world.start().await.stop().await;
    let seed =
        std::fs::read_to_string(PathBuf::from(crate::support::root()).join("tests/scale.sql"))
            .expect("the file");
    world.pool.execute(sqlx::AssertSqlSafe(seed.replace(":jobs", "100000"))).await.expect("seeded");
    for table in ["signups", "signup_customerio_sync_jobs"] {
        world
            .pool
            .execute(sqlx::AssertSqlSafe(format!("VACUUM ANALYZE {table}")))
            .await
            .expect("analyzed");
    }
    world.pool.execute("SELECT pg_stat_force_next_flush()").await.expect("flushed");
    let (sequential, before) = scans(&world).await;
    let app = world.start().await;
    let questions = [
        "/sync-failures",
        "/sync-failures?offset=9000",
        "/sync-failures?errorType=network",
        "/sync-failures?syncPhase=enriched",
        "/sync-failures?syncPhase=enriched&errorType=other",
        "/sync-failures?search=person77770@",
        "/sync-failures?search=example.com",
        "/sync-failures?search=nobody",
        "/sync-failures?signature=Customer.io+answered+501",
        "/failure-groups",
        "/stats",
    ];
    for question in questions {
        world.read(&app, question).await;
    }
    assert_eq!(world.read(&app, "/sync-failures").await["total"], 10_000);
    assert_eq!(world.read(&app, "/sync-failures?search=person77770@").await["total"], 1);
    app.stop().await;
    let used = wait_for("the counts", || async {
        Some(scans(&world).await).filter(|(_, used)| *used >= before + questions.len() as i64)
    })
    .await;
    assert_eq!(used.0, sequential, "the jobs were read from end to end");
}
