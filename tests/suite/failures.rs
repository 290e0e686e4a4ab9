//! Failures over HTTP: the list, groups, stats, job details, single retries, cleanup and process.

use crate::support::{SHORT_LADDER, World, confirmed, contact, submitted, wait_for};
use chrono::{DateTime, Utc};
use customerio_sync::{app::App, ledger::Ledger};
use serde_json::{Value, json};
use sqlx::Executor;
use std::time::Duration;
use uuid::Uuid;

/// Jobs of three people, inserted directly into the tables: four failed, one completed.
const SEED: &str = "
    INSERT INTO signups
        (id, operator_id, customer_id, email, first_name, last_name, customerio_sync_failed,
        customerio_sync_error)
    VALUES
        ('00000000-0000-4000-8000-000000000001',
            'op', 'c-1', 'ann@example.com', 'Ann', 'Lee', true, 'x'),
        ('00000000-0000-4000-8000-000000000002',
            'op', 'c-2', 'bob@test.org', 'Bob', 'O_Neill', true, 'x'),
        ('00000000-0000-4000-8000-000000000003',
            'op', 'c-3', 'CAROL@example.com', 'Carol', '100%', true, 'x');
    INSERT INTO signup_customerio_sync_jobs
        (id, signup_id, sync_phase, status, attempt_count, last_attempt_at, error_type,
        error_message)
    VALUES
        ('00000000-0000-4000-9000-000000000001', '00000000-0000-4000-8000-000000000001',
            'initial', 'failed', 5, '2025-01-01', 'server_error',
            'Customer.io answered 503: trace 4711'),
        ('00000000-0000-4000-9000-000000000002', '00000000-0000-4000-8000-000000000001',
            'enriched', 'failed', 5, '2025-01-02', 'server_error',
            'Customer.io answered 503: trace 4712'),
        ('00000000-0000-4000-9000-000000000003', '00000000-0000-4000-8000-000000000002',
            'initial', 'failed', 0, '2025-01-03', 'other', 'Customer.io answered 403'),
        ('00000000-0000-4000-9000-000000000004', '00000000-0000-4000-8000-000000000003',
            'initial', 'failed', 3, NULL, 'network', 'reset by 10.0.0.7'),
        ('00000000-0000-4000-9000-000000000005', '00000000-0000-4000-8000-000000000003',
            'enriched', 'completed', 0, '2025-01-03', NULL, NULL);
";

async fn seeded() -> (World, App) {
    let world = World::new().await;
    let app = world.start().await;
    world.pool.execute(SEED).await.expect("seeded");
    (world, app)
}

/// Makes the failed jobs pending, so that `process` may run them.
async fn make_failed_jobs_ready(world: &World) {
    let sql = "
        UPDATE signup_customerio_sync_jobs SET status = 'pending', attempt_count = 0
        WHERE status = 'failed'";
    world.pool.execute(sql).await.expect("updated");
}

/// The last digit of each job id in a list, in the order of the list.
fn numbers(list: &Value) -> Vec<u64> {
    let id = |item: &Value| {
        u64::from(item["jobId"].as_str().expect("an id").bytes().last().expect("a digit") - b'0')
    };
    list["items"].as_array().expect("items").iter().map(id).collect()
}

#[tokio::test]
async fn the_list_is_sorted_by_attempt_count_and_latest_attempt() {
    let (world, app) = seeded().await;
    let list = world.read(&app, "/sync-failures").await;
    assert_eq!(numbers(&list), [2, 1, 4, 3]);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(4), &json!(50), &json!(0))
    );
    let item = &list["items"][1];
    assert_eq!(
        item["customer"],
        json!({ "id": "c-1", "email": "ann@example.com", "firstName": "Ann", "lastName": "Lee" })
    );
    assert_eq!((&item["status"], &item["syncPhase"]), (&json!("failed"), &json!("initial")));
    assert_eq!((&item["attemptCount"], &item["maxAttempts"]), (&json!(5), &json!(5)));
    assert_eq!(
        (&item["errorType"], &item["verdict"]["cause"]),
        (&json!("server_error"), &json!("outage"))
    );
    assert_eq!(item["errorMessage"], "Customer.io answered 503: trace 4711");
    app.stop().await;
}

#[tokio::test]
async fn filters_search_and_paging_narrow_the_list() {
    let (world, app) = seeded().await;
    for (query, expected) in [
        ("?syncPhase=initial", vec![1, 4, 3]),
        ("?errorType=server_error", vec![2, 1]),
        ("?errorType=rate_limit", vec![]),
        ("?syncPhase=enriched&errorType=server_error", vec![2]),
        ("?search=ANN@", vec![2, 1]),
        ("?search=carol", vec![4]),
        ("?search=ann+lee", vec![2, 1]),
        ("?search=o_n", vec![3]),
        ("?search=0%25", vec![4]),
        ("?search=%25", vec![4]),
        ("?search=com%20ann", vec![]),
        ("?search=example.com&syncPhase=initial", vec![1, 4]),
        ("?limit=2", vec![2, 1]),
        ("?limit=2&offset=2", vec![4, 3]),
        ("?limit=2&offset=4", vec![]),
    ] {
        let list = world.read(&app, &format!("/sync-failures{query}")).await;
        assert_eq!(numbers(&list), expected, "{query}");
    }
    let page = world.read(&app, "/sync-failures?limit=1&offset=1&search=example").await;
    assert_eq!(
        (&page["total"], &page["limit"], &page["offset"]),
        (&json!(3), &json!(1), &json!(1))
    );
    let masked = world.read(&app, "/sync-failures?search=bob&masked=true").await;
    assert_eq!(masked["items"][0]["customer"]["email"], "b***@t***.org");
    app.stop().await;
}

#[tokio::test]
async fn a_bad_request_gets_a_problem_that_names_what_is_allowed() {
    let (world, app) = seeded().await;
    let id = Uuid::new_v4();
    let long = "x".repeat(201);
    let cases = [
        ("GET", "/sync-failures?phase=initial".to_owned(), 400, "expected one of"),
        ("GET", "/sync-failures?syncPhase=late".to_owned(), 400, "`initial` or `enriched`"),
        ("GET", "/sync-failures?errorType=timeout".to_owned(), 400, "rate_limit"),
        (
            "GET",
            "/sync-failures?limit=0".to_owned(),
            400,
            "query limit: found \"0\", expected an integer from 1 to 500",
        ),
        ("GET", "/sync-failures?limit=501".to_owned(), 400, "from 1 to 500"),
        ("GET", "/sync-failures?limit=many".to_owned(), 400, "from 1 to 500"),
        ("GET", "/sync-failures?offset=-1".to_owned(), 400, "from 0 to"),
        ("GET", "/sync-failures?limit=1&limit=2".to_owned(), 400, "duplicate field"),
        ("GET", format!("/sync-failures?search={long}"), 400, "at most 200 characters"),
        ("GET", "/sync-failures?search=%00".to_owned(), 400, "U+0000"),
        ("GET", "/stats?x=1".to_owned(), 400, "unknown field `x`"),
        ("GET", "/jobs/7".to_owned(), 400, "expected a UUID"),
        ("GET", format!("/jobs/{id}"), 404, "no such job"),
        ("POST", "/nobody/retry".to_owned(), 400, "expected a UUID"),
        ("POST", format!("/{id}/retry"), 404, "no job of this signup"),
        ("POST", format!("/{id}/retry?syncPhase=x"), 400, "`initial` or `enriched`"),
        ("POST", "/process?limit=501".to_owned(), 400, "from 1 to 500"),
        ("POST", "/sync-failures".to_owned(), 405, "Allow"),
        ("DELETE", "/stats".to_owned(), 405, "Allow"),
        ("POST", format!("/unprocessable/{id}/replay"), 404, "no such open message"),
        ("POST", format!("/bulk-retries/{id}/cancel"), 404, "no such bulk retry"),
        ("POST", format!("/bulk-actions/{id}/cancel"), 404, "no such bulk action"),
        ("GET", "/nothing".to_owned(), 404, "/docs"),
        ("POST", "/sync-failures/retry".to_owned(), 415, "content-type: application/json"),
    ];
    for (method, path, status, expected) in cases {
        let (found, problem) = world.api(&app, method, &path, None).await;
        let detail = problem["detail"].as_str().unwrap_or_else(|| panic!("no detail: {problem}"));
        assert_eq!(
            (found, &problem["status"]),
            (status, &json!(status)),
            "{method} {path}: {detail}"
        );
        assert!(detail.contains(expected), "{method} {path}: {detail}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_bad_request_body_gets_a_problem_that_names_the_field() {
    let (world, app) = seeded().await;
    for (path, body, status, expected) in [
        ("/sync-failures/retry", json!({ "phase": "initial" }), 422, "unknown field `phase`"),
        ("/sync-failures/retry", json!({ "errorType": "x" }), 422, "body errorType"),
        ("/sync-failures/retry", json!({ "jobIds": ["x"] }), 422, "jobIds[0]"),
        ("/sync-failures/retry", json!([]), 400, "expected a JSON object"),
        ("/sync-failures/dismiss", json!({}), 422, "missing field `reason`"),
        ("/sync-failures/dismiss", json!({ "reason": " " }), 422, "1 to 500 characters"),
        ("/unprocessable/dismiss", json!({ "reason": "not needed" }), 422, "body reason"),
        ("/unprocessable/replay", json!({ "dismissReason": "x" }), 422, "unknown field"),
    ] {
        let (found, problem) = world.api(&app, "POST", path, Some(&body)).await;
        let detail = problem["detail"].as_str().unwrap_or_else(|| panic!("no detail: {problem}"));
        assert!(found == status && detail.contains(expected), "{path} {body}: {found} {detail}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_method_and_a_large_body_get_problem_responses() {
    let (world, app) = seeded().await;
    let url = |path: &str| format!("http://{}/api/v1/signups/customerio{path}", app.http_addr());
    let response = world.http().put(url("/stats")).send().await.expect("a response");
    assert_eq!(
        (response.status().as_u16(), response.headers()["allow"].as_bytes()),
        (405, &b"GET,HEAD"[..])
    );
    assert_eq!(response.headers()["content-type"], "application/problem+json");

    let large = format!("{{\"search\":\"{}\"}}", "x".repeat(1024 * 1024));
    let request =
        world.http().post(url("/sync-failures/retry")).header("content-type", "application/json");
    let with_length = request.try_clone().expect("no stream").body(large.clone());
    let response = with_length.send().await.expect("a response");
    assert_eq!(response.status().as_u16(), 413);
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(large)]);
    let without_length = request.body(reqwest::Body::wrap_stream(pieces));
    let response = without_length.send().await.expect("a response");
    assert_eq!(response.status().as_u16(), 413, "a body without a length is limited as well");
    assert!(response.text().await.expect("a body").contains("1048576 bytes"));
    app.stop().await;
}

#[tokio::test]
async fn a_request_that_takes_too_long_gets_a_503() {
    let world = World::new().await.with("CUSTOMERIO_SYNC__HTTP__REQUEST_TIMEOUT", "300ms");
    let app = world.start().await;
    let mut lock = world.pool.begin().await.expect("a transaction");
    lock.execute("LOCK TABLE signup_customerio_sync_jobs").await.expect("locked");
    let (status, problem) = world.api(&app, "GET", "/sync-failures", None).await;
    assert!(
        status == 503 && problem["detail"].to_string().contains("not completed within 300ms"),
        "{problem}"
    );
    drop(lock);
    app.stop().await;
}

#[tokio::test]
async fn failures_of_three_causes_form_three_groups() {
    let world = World::new().await;
    let app = world.start().await;
    // Messages with one cause differ in quoted values, IP addresses, ports, ids and e-mail
    // addresses.
    let messages = [
        "'Customer.io refused the event: invalid: attributes.plan: \"' || n || '\" is not known'",
        "'no connection to Customer.io: tcp connect: 10.0.' || n % 255 || '.7:' || 1000 + n \
            || ': refused'",
        "'Customer.io answered 503: trace ' || md5(n::text) || ' for person' || n \
            || '@example.com'",
    ];
    for (index, message) in messages.iter().enumerate() {
        let sql = format!(
            "WITH s AS (
                INSERT INTO signups (id, operator_id)
                SELECT gen_random_uuid(), 'op' FROM generate_series(1, 700)
                RETURNING id
            )
            INSERT INTO signup_customerio_sync_jobs
                (id, signup_id, sync_phase, status, error_type, error_message)
            SELECT gen_random_uuid(), id, 'initial', 'failed', 'other', {message}
            FROM (SELECT id, {index} * 1000 + row_number() OVER () AS n FROM s) AS numbered"
        );
        world.pool.execute(sqlx::AssertSqlSafe(sql)).await.expect("seeded");
    }
    let groups = world.read(&app, "/failure-groups").await;
    let counts: Vec<_> =
        groups["items"].as_array().expect("items").iter().map(|group| &group["count"]).collect();
    assert_eq!(counts, [&json!(700); 3], "{groups}");
    app.stop().await;
}

#[tokio::test]
async fn a_group_contains_the_failures_with_one_signature() {
    let (world, app) = seeded().await;
    let groups = world.read(&app, "/failure-groups").await;
    let groups = groups["items"].as_array().expect("items").clone();
    assert_eq!(groups.len(), 3);
    assert_eq!(groups[0]["signature"], "Customer.io answered 503: trace {n}");
    assert_eq!((&groups[0]["count"], &groups[0]["errorType"]), (&json!(2), &json!("server_error")));
    let forbidden = groups
        .iter()
        .find(|group| group["signature"] == "Customer.io answered 403")
        .expect("a group");
    assert_eq!(forbidden["sampleJobId"], "00000000-0000-4000-9000-000000000003");
    let search = "/sync-failures?signature=Customer.io+answered+503:+trace+%7Bn%7D";
    assert_eq!(numbers(&world.read(&app, search).await), [2, 1]);
    app.stop().await;
}

#[tokio::test]
async fn stats_count_jobs_by_status_and_phase() {
    let (world, app) = seeded().await;
    let stats = world.read(&app, "/stats").await;
    assert_eq!(
        stats["byStatus"],
        json!({ "pending": 0, "processing": 0, "completed": 1, "failed": 4 })
    );
    assert_eq!(stats["byPhase"]["completed"], json!({ "initial": 0, "enriched": 1 }));
    assert_eq!(stats["byPhase"]["failed"], json!({ "initial": 3, "enriched": 1 }));
    assert_eq!((&stats["unprocessable"], &stats["openFailures"]), (&json!(0), &json!(4)));
    assert_eq!(stats["breaker"]["state"], "closed");

    world
        .publish(
            "signup.events",
            "signup.submitted",
            b"not json",
            lapin::BasicProperties::default(),
        )
        .await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_for_failures(1).await;
    let stats = world.read(&app, "/stats").await;
    assert_eq!(
        (&stats["unprocessable"], &stats["byPhase"]["completed"]["initial"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(stats["lastHour"][0]["completed"], 1);
    app.stop().await;
}

#[tokio::test]
async fn stats_count_the_attempts_of_the_last_hour() {
    let world = World::new().await.with("RETRY_DELAYS", "1h");
    let app = world.start().await;
    let completed = Uuid::new_v4();
    world.submit(&submitted(completed)).await;
    world.wait_for_job(completed, "initial", "completed").await;
    world.failed_signup().await;
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let retried = Uuid::new_v4();
    world.submit(&submitted(retried)).await;
    world.wait_for_retry(retried, "initial").await;
    let older = "
        INSERT INTO attempt_counts (minute, completed, retried, failed)
        VALUES (date_trunc('minute', now()) - interval '61 minutes', 1, 1, 1),
            (date_trunc('minute', now()) - interval '3 hours', 1, 1, 1)";
    world.pool.execute(older).await.expect("inserted");
    let config = world.config();
    let ledger = Ledger::new(&config.database, &config.tls, 5).expect("a URL");
    for _ in 0..2 {
        let stats = world.read(&app, "/stats").await;
        let minutes = stats["lastHour"].as_array().expect("minutes");
        let sum = |result: &str| minutes.iter().filter_map(|one| one[result].as_i64()).sum::<i64>();
        assert_eq!(["completed", "retried", "failed"].map(sum), [1; 3], "{minutes:?}");
        ledger.sum_counts().await.expect("summed");
    }
    let kept = "SELECT count(*) FROM attempt_counts WHERE minute < now() - interval '2 hours'";
    assert_eq!(world.count(kept).await, 0);
    app.stop().await;
}

#[tokio::test]
async fn stats_count_the_signups_of_the_last_24_hours() {
    let (world, app) = seeded().await;
    let sql = "
        UPDATE signups SET created_at = now() - interval '23 hours 50 minutes'
        WHERE customer_id = 'c-1'";
    world.pool.execute(sql).await.expect("updated");
    let sql = "
        UPDATE signups SET created_at = now() - interval '24 hours 10 minutes'
        WHERE customer_id = 'c-2'";
    world.pool.execute(sql).await.expect("updated");
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    for body in [&b"not json"[..], b"[]"] {
        world
            .publish("signup.events", "signup.submitted", body, lapin::BasicProperties::default())
            .await;
    }
    world.wait_for_failures(2).await;
    let recent = world.read(&app, "/stats").await["last24Hours"].clone();
    assert_eq!(
        (&recent["signups"], &recent["notSynced"], &recent["unprocessable"]),
        (&json!(3), &json!(2), &json!(2))
    );
    let oldest: DateTime<Utc> =
        recent["oldestNotSyncedAt"].as_str().expect("a time").parse().expect("RFC 3339");
    assert_eq!((Utc::now() - oldest).num_hours(), 23);

    // A message that is resolved, or that was parked earlier, is not counted.
    let sql = "
        UPDATE sync_failures
        SET failed_at = CASE WHEN body = 'not json' THEN now() - interval '25 hours' ELSE now() END,
            resolved_at = CASE WHEN body = 'not json' THEN NULL ELSE now() END,
            resolution = CASE WHEN body = 'not json' THEN NULL ELSE 'dismissed' END";
    world.pool.execute(sql).await.expect("updated");
    world.pool.execute("UPDATE signups SET created_at = '2025-01-01'").await.expect("updated");
    let recent = world.read(&app, "/stats").await["last24Hours"].clone();
    let nothing =
        json!({ "signups": 0, "notSynced": 0, "oldestNotSyncedAt": null, "unprocessable": 0 });
    assert_eq!(recent, nothing);
    app.stop().await;
}

#[tokio::test]
async fn stats_show_the_queues_and_their_consumers() {
    // One message is delivered and in its call; the others stay in their queue.
    let world = World::new().await.with("CUSTOMERIO_SYNC__BROKER__PREFETCH", "1");
    let app = world.start().await;
    world.fault(json!({ "kind": "latency", "ms": 60_000 })).await;
    for _ in 0..5 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    let stats = wait_for("four ready messages", || async {
        Some(world.read(&app, "/stats").await).filter(|stats| stats["queues"][0]["ready"] == 4)
    })
    .await;
    assert_eq!(stats["messagesWaiting"], 4);
    let queue = |name: &str, ready: u32, consumers: u32| -> Value {
        json!({ "name": name, "ready": ready, "consumers": consumers })
    };
    let expected = [
        queue("customerio-sync.signup-submitted", 4, 1),
        queue("customerio-sync.extraction-confirmed", 0, 1),
        queue("customerio-sync.jobs", 0, 1),
        queue("customerio-sync.failed.mirror", 0, 1),
    ];
    let queues = stats["queues"].as_array().expect("a list");
    assert_eq!(queues[..4], expected);
    assert_eq!(queues[4]["name"], "customerio-sync.failed");
    world.clear_faults().await;
    app.stop().await;
}

#[tokio::test]
async fn stats_get_a_503_while_the_database_is_slow() {
    let (world, app) = seeded().await;
    let mut lock = world.pool.begin().await.expect("a transaction");
    lock.execute("LOCK TABLE signup_customerio_sync_jobs").await.expect("locked");
    let started = std::time::Instant::now();
    let (status, problem) = world.api(&app, "GET", "/stats", None).await;
    assert!(
        status == 503 && problem["detail"].to_string().contains("the database did not answer"),
        "{problem}"
    );
    assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    // PostgreSQL has ended the statement as well.
    wait_for("the statement to end", || async {
        let sql = "
            SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
                AND query LIKE '%GROUP BY sync_phase%' AND pid <> pg_backend_pid()";
        (world.count(sql).await == 0).then_some(())
    })
    .await;
    lock.rollback().await.expect("the lock is released");
    assert_eq!(world.api(&app, "GET", "/stats", None).await.0, 200);
    app.stop().await;
}

#[tokio::test]
async fn the_total_of_the_list_is_exact_to_10000() {
    let world = World::new().await;
    let app = world.start().await;
    let insert = async |count: i64| {
        let sql = "
            WITH s AS (
                INSERT INTO signups (id, operator_id)
                SELECT gen_random_uuid(), 'op' FROM generate_series(1, $1)
                RETURNING id
            )
            INSERT INTO signup_customerio_sync_jobs
                (id, signup_id, sync_phase, status, error_type, error_message)
            SELECT gen_random_uuid(), id, 'initial', 'failed', 'other', 'x' FROM s";
        sqlx::query(sql).bind(count).execute(&world.pool).await.expect("seeded");
    };
    let total = async || {
        let list = world.read(&app, "/sync-failures?limit=1").await;
        (list["total"].clone(), list["totalIsExact"].clone())
    };
    insert(10_000).await;
    assert_eq!(total().await, (json!(10_000), json!(true)));
    insert(1).await;
    assert_eq!(total().await, (json!(10_000), json!(false)), "a lower bound");
    let last = world.read(&app, "/sync-failures?limit=2&offset=9999").await;
    assert_eq!(last["items"].as_array().map(Vec::len), Some(2), "every page can be read");
    app.stop().await;
}

#[tokio::test]
async fn a_manual_retry_restarts_a_failed_job_and_clears_its_failure() {
    let world = World::new().await.with("RETRY_DELAYS", SHORT_LADDER);
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    world.submit(&submitted(signup)).await;
    let failed = world.wait_for_job(signup, "initial", "failed").await;
    world.wait_for_failures(1).await;
    assert_eq!(world.signup(signup).await["customerio_sync_failed"], true);

    // Calls are slow, so that the job can be read before it completes.
    world.clear_faults().await;
    world.fault(json!({ "kind": "latency", "ms": 1500 })).await;
    let response = world.act(&app, &format!("/{signup}/retry?syncPhase=initial"), None).await;
    assert_eq!(
        response,
        json!({ "retried": [{ "jobId": failed["id"], "syncPhase": "initial" }], "count": 1 })
    );
    let job = world.job(signup, "initial").await.expect("the job");
    assert_eq!(
        (&job["attempt_count"], &job["next_retry_at"], &job["manual_retry"]),
        (&json!(0), &Value::Null, &json!(true))
    );
    assert_eq!((&job["run"], &job["error_type"]), (&json!(1), &Value::Null));
    let stored = world.signup(signup).await;
    assert_eq!(
        (&stored["customerio_sync_failed"], &stored["customerio_sync_error"]),
        (&json!(false), &Value::Null)
    );
    let failures = world.failures().await;
    assert_eq!(failures[0]["resolution"], "retried");
    let audit = world.audit("customerio_manual_retry").await;
    assert_eq!(
        (&audit[0]["actor"], &audit[0]["details"]["manualRetry"]),
        (&json!("local"), &json!(true))
    );
    assert_eq!(
        (&audit[0]["details"]["jobId"], &audit[0]["signup_id"]),
        (&failed["id"], &json!(signup))
    );

    world.wait_for_job(signup, "initial", "completed").await;
    let synced = wait_for("the audit entry of the success", || async {
        world.audit("customerio_synced").await.pop()
    })
    .await;
    assert_eq!(synced["details"]["manualRetry"], true);
    assert_eq!(world.events().await.len(), 1, "the event is tracked once");
    let (status, _) = world.api(&app, "POST", &format!("/{signup}/retry"), None).await;
    assert_eq!(status, 404, "a completed job can't be retried");
    app.stop().await;
}

#[tokio::test]
async fn a_retry_without_a_phase_restarts_both_jobs_of_a_signup() {
    let (world, app) = seeded().await;
    let response = world.act(&app, "/00000000-0000-4000-8000-000000000001/retry", None).await;
    assert_eq!(response["count"], 2);
    let signup: Uuid = "00000000-0000-4000-8000-000000000001".parse().expect("a UUID");
    world.wait_for_job(signup, "initial", "completed").await;
    world.wait_for_job(signup, "enriched", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn a_job_is_shown_in_full_and_can_be_masked_and_revealed() {
    let world = World::new()
        .await
        .with("CUSTOMERIO_SYNC__HTTP__MANAGEMENT_URL", "https://rabbit.example/{queue}");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
    world.fault(json!({ "kind": "status", "status": 503 })).await;
    world.confirm(&confirmed(signup)).await;
    let job = world.wait_for_job(signup, "enriched", "failed").await;
    let id = job["id"].as_str().expect("an id");
    let detail = world.read(&app, &format!("/jobs/{id}")).await;
    assert_eq!(
        (&detail["job"]["status"], &detail["job"]["attemptCount"]),
        (&json!("failed"), &json!(5))
    );
    assert_eq!(detail["signup"]["customer"]["email"], format!("{signup}@example.com"));
    assert_eq!(detail["signup"]["betSlip"]["odds"], "+150");
    assert_eq!(detail["attempts"].as_array().map(Vec::len), Some(6));
    assert_eq!(
        (&detail["attempts"][0]["tier"], &detail["attempts"][5]["tier"]),
        (&json!("200ms"), &Value::Null)
    );
    assert_eq!(detail["ladder"][4], json!({ "name": "600ms", "delaySeconds": 0.6 }));
    assert_eq!(
        detail["audit"][0]["action"], "customerio_sync_failed",
        "the audit log of this job only"
    );
    assert_eq!(detail["verdict"]["cause"], "outage");
    assert!(
        detail["verdict"]["warning"].as_str().expect("a warning").contains("no campaign"),
        "the event is old"
    );
    assert_eq!(detail["queueUrl"], "https://rabbit.example/customerio-sync.failed");
    assert_eq!(detail["job"]["contactId"], contact(signup));
    let tracked = &world.events().await[0]["id"];
    let initial = world.job(signup, "initial").await.expect("the job");
    let path = format!("/jobs/{}", initial["id"].as_str().expect("an id"));
    assert_eq!(&world.read(&app, &path).await["job"]["trackedEventId"], tracked);

    let masked = world.read(&app, &format!("/jobs/{id}?masked=true")).await;
    assert!(
        !masked.to_string().contains("@example.com") && !masked.to_string().contains("\"Lee\""),
        "{masked}"
    );
    let revealed = world.act(&app, &format!("/jobs/{id}/reveal"), None).await;
    assert_eq!(revealed["lastName"], "Lee");
    assert_eq!(world.audit("customerio_reveal").await[0]["actor"], "local");
    app.stop().await;
}

#[tokio::test]
async fn a_job_with_a_long_history_shows_its_latest_attempts() {
    let (world, app) = seeded().await;
    let attempts = "
        INSERT INTO sync_attempts (job_id, run, attempt, started_at, duration_ms)
        SELECT '00000000-0000-4000-9000-000000000001', 0, n, now(), 1
        FROM generate_series(0, 200) AS n";
    world.pool.execute(attempts).await.expect("inserted");
    let detail = world.read(&app, "/jobs/00000000-0000-4000-9000-000000000001").await;
    assert_eq!(detail["attempts"].as_array().map(Vec::len), Some(200));
    assert_eq!(detail["attempts"][0]["attempt"], 1, "the first one is left out");
    assert_eq!(
        (&detail["hasEarlierAttempts"], &detail["hasEarlierAudit"]),
        (&json!(true), &json!(false))
    );
    app.stop().await;
}

#[tokio::test]
async fn cleanup_resets_stuck_jobs_and_process_runs_ready_jobs() {
    let (world, app) = seeded().await;
    // Job 1 is stuck, job 2 is in progress, and jobs 3 and 4 are ready.
    let sql = "
        UPDATE signup_customerio_sync_jobs
        SET status = CASE WHEN attempt_count = 5 THEN 'processing' ELSE 'pending' END,
            attempt_count = 0,
            updated_at = now() - CASE WHEN sync_phase = 'initial' THEN interval '6 minutes'
                ELSE interval '4 minutes' END,
            last_attempt_at = NULL
        WHERE status = 'failed'";
    world.pool.execute(sql).await.expect("updated");
    assert_eq!(world.act(&app, "/cleanup", None).await, json!({ "resetCount": 1 }));
    assert_eq!(world.act(&app, "/cleanup", None).await, json!({ "resetCount": 0 }));
    assert_eq!(
        world.audit("customerio_cleanup").await[0]["details"]["jobId"],
        "00000000-0000-4000-9000-000000000001"
    );

    let refusal =
        json!({ "kind": "refuse", "identifier": "c-2", "field": "plan", "message": "unknown" });
    world.fault(refusal.clone()).await;
    let first = world.act(&app, "/process?limit=1", None).await;
    assert_eq!(first["processed"], 1);
    world.fault(refusal).await;
    let rest = world.act(&app, "/process", None).await;
    assert_eq!(rest["processed"], 2);
    let sum =
        |key: &str| first[key].as_u64().expect("a count") + rest[key].as_u64().expect("a count");
    assert_eq!((sum("succeeded"), sum("failed"), sum("retrying")), (2, 1, 0));
    assert_eq!(world.act(&app, "/process", None).await["processed"], 0);
    let processing = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'";
    assert_eq!(world.count(processing).await, 1, "the job in progress is left alone");
    let failures = world.wait_for_failures(1).await;
    assert_eq!(
        failures[0]["reason"], "permanent",
        "a job that process runs is parked like any other"
    );
    app.stop().await;
}

#[tokio::test]
async fn process_runs_each_job_once_and_schedules_retries_on_the_ladder() {
    let (world, app) = seeded().await;
    make_failed_jobs_ready(&world).await;
    world.fault(json!({ "kind": "latency", "ms": 300 })).await;
    let (one, other) = tokio::join!(
        world.act(&app, "/process?limit=4", None),
        world.act(&app, "/process?limit=4", None)
    );
    let processed =
        one["processed"].as_u64().expect("a count") + other["processed"].as_u64().expect("a count");
    assert_eq!(processed, 4, "{one} {other}");
    assert!(
        world.events().await.iter().all(|event| event["repeats"] == 0),
        "no event was sent twice"
    );
    world.clear_faults().await;

    let signup = Uuid::new_v4();
    world.fault(json!({ "kind": "status", "status": 503, "calls": 1 })).await;
    let sql = "
        WITH s AS (
            INSERT INTO signups (id, operator_id, email) VALUES ($1, 'op', 'x@example.com')
            RETURNING id
        )
        INSERT INTO signup_customerio_sync_jobs (id, signup_id, sync_phase, status)
        SELECT gen_random_uuid(), id, 'initial', 'pending' FROM s";
    sqlx::query(sql).bind(signup).execute(&world.pool).await.expect("a job");
    let summary = world.act(&app, "/process", None).await;
    assert_eq!(summary, json!({ "processed": 1, "succeeded": 0, "failed": 0, "retrying": 1 }));
    world.wait_for_job(signup, "initial", "completed").await;
    app.stop().await;
}

#[tokio::test]
async fn process_runs_no_job_while_the_circuit_breaker_is_open() {
    let (world, app) = seeded().await;
    make_failed_jobs_ready(&world).await;
    world.fault(json!({ "kind": "status", "status": 429, "calls": 1, "retry_after": "60" })).await;
    assert_eq!(world.act(&app, "/process?limit=1", None).await["retrying"], 1);
    let (status, problem) = world.api(&app, "POST", "/process", None).await;
    assert!(
        status == 503 && problem["detail"].to_string().contains("see breaker in stats"),
        "{problem}"
    );
    let breaker = &world.read(&app, "/stats").await["breaker"];
    assert_eq!((&breaker["state"], &breaker["reason"]), (&json!("open"), &json!("retry_after")));
    let next_probe_at: DateTime<Utc> =
        breaker["nextProbeAt"].as_str().expect("a time").parse().expect("RFC 3339");
    let wait = (next_probe_at - Utc::now()).num_seconds();
    assert!((50..=60).contains(&wait), "{breaker}");
    app.stop().await;
}

#[tokio::test]
async fn advice_does_not_depend_on_the_wording_of_the_error() {
    let world = World::new().await.with("RETRY_DELAYS", "50ms");
    let app = world.start().await;
    let signup = Uuid::new_v4();
    world.confirm(&confirmed(signup)).await;
    let job = world.wait_for_job(signup, "enriched", "failed").await;
    let path = format!("/jobs/{}", job["id"].as_str().expect("an id"));
    let advice = world.read(&app, &path).await["verdict"].clone();
    assert_eq!(advice["cause"], "missing_signup");
    let rewordings = [
        "UPDATE sync_attempts SET error_message = 'reworded'",
        "UPDATE signup_customerio_sync_jobs SET error_message = 'reworded'",
    ];
    for sql in rewordings {
        world.pool.execute(sql).await.expect("reworded");
    }
    assert_eq!(world.read(&app, &path).await["verdict"], advice);
    let group = world.read(&app, "/sync-failures").await["items"][0].clone();
    assert_eq!((&group["errorMessage"], &group["verdict"]), (&json!("reworded"), &advice));
    app.stop().await;
}
