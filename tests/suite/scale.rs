//! Many jobs in the tables: the queries of operators do not read all of them.

use crate::support::{World, wait_for};
use sqlx::Executor;
use std::path::PathBuf;

/// Number of sequential scans and of index scans of the jobs.
async fn scans(world: &World) -> (i64, i64) {
    let sequential =
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'";
    let index =
        "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'";
    (world.count(sequential).await, world.count(index).await)
}

#[tokio::test]
async fn no_query_of_an_operator_reads_all_jobs() {
    let world = World::new().await;
    // Sessions report their statistics when they end. After this run on empty tables, none are left
    // to be reported later.
    world.start().await.stop().await;
    let seed =
        std::fs::read_to_string(PathBuf::from(crate::support::root()).join("tests/scale.sql"))
            .expect("the file can be read");
    world.pool.execute(sqlx::AssertSqlSafe(seed.replace(":jobs", "100000"))).await.expect("seeded");
    for table in ["signups", "signup_customerio_sync_jobs", "open_jobs"] {
        world
            .pool
            .execute(sqlx::AssertSqlSafe(format!("VACUUM ANALYZE {table}")))
            .await
            .expect("analyzed");
    }
    world.pool.execute("SELECT pg_stat_force_next_flush()").await.expect("flushed");
    let (sequential_before, index_before) = scans(&world).await;
    let app = world.start().await;
    let queries = [
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
    for query in queries {
        world.read(&app, query).await;
    }
    assert_eq!(world.read(&app, "/sync-failures").await["total"], 10_000);
    assert_eq!(world.read(&app, "/sync-failures?search=person77770@").await["total"], 1);
    app.stop().await;
    let (sequential, _) = wait_for("the index scans to be counted", || async {
        Some(scans(&world).await).filter(|(_, index)| *index >= index_before + queries.len() as i64)
    })
    .await;
    assert_eq!(sequential, sequential_before, "a query read all jobs");
}
