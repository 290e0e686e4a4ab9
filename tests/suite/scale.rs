//! Many jobs in the tables: the queries of operators do not read all of them.

use crate::support::{World, wait_for};
use customerio_sync::ledger::Ledger;
use sqlx::Executor;
use std::{path::PathBuf, time::Duration};

/// Number of sequential scans and of index scans of the jobs.
async fn scans(world: &World) -> (i64, i64) {
    let sequential =
        "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'";
    let index =
        "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'signup_customerio_sync_jobs'";
    (world.count(sequential).await, world.count(index).await)
}

/// Starts a world with 100,000 signups, one per second back in time. Every tenth has failed.
async fn large_world() -> World {
    let world = World::new().await;
    // Sessions report their statistics when they end. After this run on empty tables, none are left
    // to be reported later.
    world.start().await.stop().await;
    let seed =
        std::fs::read_to_string(PathBuf::from(crate::support::root()).join("tests/scale.sql"))
            .expect("the file can be read");
    // A search finds these first, and none of them has an open failure.
    let flagged = "
        INSERT INTO signups (id, email, customerio_sync_failed, customerio_sync_error, created_at)
        SELECT gen_random_uuid(), 'dismissed' || n || '@example.com', true, 'x', '2025-01-01'
        FROM generate_series(1, 20001) AS n";
    // One session, which reports its statistics before the tests read them.
    let mut session = world.pool.acquire().await.expect("a session");
    session.execute(flagged).await.expect("seeded");
    let seed = seed.replace(":jobs", "100000");
    session.execute(sqlx::AssertSqlSafe(seed)).await.expect("seeded");
    for table in ["signups", "signup_customerio_sync_jobs", "open_jobs"] {
        let analyze = format!("VACUUM ANALYZE {table}");
        session.execute(sqlx::AssertSqlSafe(analyze)).await.expect("analyzed");
    }
    session.execute("SELECT pg_stat_force_next_flush()").await.expect("flushed");
    drop(session);
    world
}

#[tokio::test]
async fn the_overview_reads_only_signups_of_one_minute() {
    let world = large_world().await;
    let rows = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables
        WHERE relname = 'signups'";
    let before = world.count(rows).await;
    let config = world.config();
    let ledger = Ledger::new(&config.database, &config.tls, 5).expect("a URL");
    let overview = ledger.overview(Duration::from_secs(30)).await.expect("an overview");
    // One per ten seconds, less those of the minute that is only partly of the last 24 hours.
    let not_synced = overview.last_24_hours.not_synced;
    assert!((8_000..=8_640).contains(&not_synced), "{not_synced}");
    // PostgreSQL adds the counts of its only session when it ends.
    ledger.close().await;
    let read = wait_for("the rows to be counted", || async {
        Some(world.count(rows).await - before).filter(|read| *read > 0)
    })
    .await;
    assert!(read < 1_000, "{read} signups were read");
}

#[tokio::test]
async fn no_query_of_an_operator_reads_all_jobs() {
    let world = large_world().await;
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
    let found = world.read(&app, "/sync-failures?search=example.com").await;
    assert_eq!((&found["total"], &found["totalIsExact"]), (&10_000.into(), &true.into()));
    app.stop().await;
    let (sequential, _) = wait_for("the index scans to be counted", || async {
        Some(scans(&world).await).filter(|(_, index)| *index >= index_before + queries.len() as i64)
    })
    .await;
    assert_eq!(sequential, sequential_before, "a query read all jobs");
}
