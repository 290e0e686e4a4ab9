//! Guarantees of the ledger, tested without the rest of the service.

use crate::support::{World, arrival, completion, confirmed, submitted, wait_for};
use customerio_sync::{
    job::{AttemptId, Failure, FailureCause, Reason, Verdict},
    ledger::{
        ClaimOutcome, ClaimRest, FailedMessage, Ledger, MessageJob, MessageReadLimits, Settlement,
    },
    runtime::replica::Replica,
};
use uuid::Uuid;

async fn migrated_ledger(world: &World) -> Ledger {
    let config = world.config();
    let ledger = Ledger::new(&config.database, &config.tls, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    ledger
}

#[tokio::test]
async fn a_settlement_with_a_lost_claim_changes_nothing() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let first = ledger.claim(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("claimed");
    let second = ledger.claim(Uuid::new_v4(), &[arrival(&event, true)]).await.expect("claimed");
    assert!(
        matches!(second.outcomes[0], ClaimOutcome::Claimed(_)),
        "the redelivery takes the claim over"
    );

    let late = ledger
        .settle(first.claim, &[completion(&first.outcomes[0])], ClaimRest::Empty)
        .await
        .expect("settled");
    assert!(late.recorded.is_empty() && late.outbox.is_empty(), "{late:?}");
    assert_eq!(
        world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'")
            .await,
        1
    );
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM audit_logs").await, 0);

    let current = ledger
        .settle(second.claim, &[completion(&second.outcomes[0])], ClaimRest::Empty)
        .await
        .expect("settled");
    assert_eq!(current.recorded.len(), 1);
    let third = ledger.claim(Uuid::new_v4(), &[arrival(&event, true)]).await.expect("claimed");
    assert!(
        matches!(third.outcomes[0], ClaimOutcome::Settled(_)),
        "the ledger returns the end state"
    );
}

/// The settlement of a claimed job that was refused.
fn refusal(outcome: &ClaimOutcome) -> Settlement {
    let failure = Failure { cause: None, ..Failure::new(FailureCause::ItemRefused, "refused") };
    let verdict = Verdict::Fail { reason: Reason::Permanent, failure };
    Settlement { verdict, ..completion(outcome) }
}

#[tokio::test]
async fn a_completion_keeps_the_error_of_the_other_job_of_its_signup() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let (failed, other) = (Uuid::new_v4(), Uuid::new_v4());
    for (event, settlement) in [
        (submitted(failed), refusal as fn(&ClaimOutcome) -> Settlement),
        (submitted(other), completion),
    ] {
        let batch = ledger.claim(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("claimed");
        let settlements = [settlement(&batch.outcomes[0])];
        ledger.settle(batch.claim, &settlements, ClaimRest::Empty).await.expect("settled");
    }

    let arrivals = [failed, other].map(|signup| arrival(&confirmed(signup), false));
    let batch = ledger.claim(Uuid::new_v4(), &arrivals).await.expect("claimed");
    let settlements: Vec<_> = batch.outcomes.iter().map(completion).collect();
    let settled = ledger.settle(batch.claim, &settlements, ClaimRest::Empty).await;
    assert_eq!(settled.expect("settled").recorded.len(), 2);
    let synced = "SELECT count(*) FROM signups WHERE customerio_synced";
    assert_eq!(world.count(synced).await, 2);
    let with_error = "SELECT count(*) FROM signups WHERE customerio_sync_error = 'refused'";
    assert_eq!(world.count(with_error).await, 1);
}

#[tokio::test]
async fn completions_are_recorded_without_those_whose_claim_was_lost() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let (lost, kept) = (submitted(Uuid::new_v4()), submitted(Uuid::new_v4()));
    let arrivals = [arrival(&lost, false), arrival(&kept, false)];
    let batch = ledger.claim(Uuid::new_v4(), &arrivals).await.expect("claimed");
    ledger.claim(Uuid::new_v4(), &[arrival(&lost, true)]).await.expect("taken over");

    let settlements: Vec<_> = batch.outcomes.iter().map(completion).collect();
    let settled = ledger.settle(batch.claim, &settlements, ClaimRest::Empty).await;
    let recorded = settled.expect("settled").recorded;
    assert_eq!(recorded, [settlements[1].job.id].into());
    let synced = "SELECT count(*) FROM signups WHERE customerio_synced";
    assert_eq!(world.count(synced).await, 1);
    let completed = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
    assert_eq!(world.count(completed).await, 1);
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 1);
}

#[tokio::test]
async fn a_batch_scans_no_table_sequentially() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    ledger.close().await;
    let ledger = migrated_ledger(&world).await;
    sqlx::query("SELECT pg_stat_reset()").execute(&world.pool).await.expect("reset");
    let signups: Vec<_> = (0..200).map(|_| Uuid::new_v4()).collect();
    for event in [submitted, confirmed] {
        let arrivals: Vec<_> = signups.iter().map(|id| arrival(&event(*id), false)).collect();
        let batch = ledger.claim(Uuid::new_v4(), &arrivals).await.expect("claimed");
        let settlements: Vec<_> = batch.outcomes.iter().map(completion).collect();
        ledger.settle(batch.claim, &settlements, ClaimRest::Empty).await.expect("settled");
    }
    // PostgreSQL adds the counts of a session when it ends.
    ledger.close().await;
    wait_for("the counts of both tables", || async {
        let sql = "SELECT count(*) FROM pg_stat_user_tables WHERE idx_scan > 0
            AND relname IN ('signups', 'signup_customerio_sync_jobs')";
        (world.count(sql).await == 2).then_some(())
    })
    .await;
    let sql = "SELECT COALESCE(sum(seq_scan), 0)::int8 FROM pg_stat_user_tables
        WHERE relname IN ('signups', 'signup_customerio_sync_jobs')";
    assert_eq!(world.count(sql).await, 0);
}

#[tokio::test]
async fn a_commit_without_a_response_is_recognized_when_repeated() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let claim = Uuid::new_v4();
    ledger.claim(claim, &[arrival(&event, false)]).await.expect("claimed");
    let batch = ledger.claim(claim, &[arrival(&event, false)]).await.expect("claimed again");
    assert!(
        matches!(batch.outcomes[0], ClaimOutcome::Claimed(_)),
        "the job is owned by another claim: {:?}",
        batch.outcomes[0]
    );

    let settlement = completion(&batch.outcomes[0]);
    let first = ledger
        .settle(claim, std::slice::from_ref(&settlement), ClaimRest::Empty)
        .await
        .expect("settled");
    let second = ledger
        .settle(claim, std::slice::from_ref(&settlement), ClaimRest::Empty)
        .await
        .expect("settled again");
    assert_eq!(first.recorded, second.recorded, "the repeat finds it recorded");
    assert_eq!((first.outbox.len(), second.outbox.len()), (1, 0), "nothing is written twice");
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM audit_logs").await, 1);
}

#[tokio::test]
async fn two_replicas_that_receive_the_same_events_claim_each_job_once() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let events: Vec<_> = (0..50).map(|_| submitted(Uuid::new_v4())).collect();
    let arrivals: Vec<_> = events.iter().map(|event| arrival(event, false)).collect();
    let mut reversed = arrivals.clone();
    reversed.reverse();
    let (first, second) = tokio::join!(
        ledger.claim(Uuid::new_v4(), &arrivals),
        ledger.claim(Uuid::new_v4(), &reversed)
    );
    let outcomes: Vec<_> =
        [first, second].into_iter().flat_map(|batch| batch.expect("claimed").outcomes).collect();
    let claimed = outcomes.iter().filter(|one| matches!(one, ClaimOutcome::Claimed(_))).count();
    let in_flight =
        outcomes.iter().filter(|one| matches!(one, ClaimOutcome::InFlight { .. })).count();
    assert_eq!((claimed, in_flight), (50, 50));
}

#[tokio::test]
async fn only_the_claim_of_a_process_that_is_gone_is_taken_over() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let replica = || ledger.clone().of_replica(&Replica::start());
    let (owner, other) = (replica(), replica());
    owner.appear().await.expect("a session");
    other.appear().await.expect("a session");
    let event = submitted(Uuid::new_v4());
    owner.claim(owner.new_claim(), &[arrival(&event, false)]).await.expect("claimed");
    for (ledger, redelivered) in [(&other, true), (&other, false), (&owner, true)] {
        let batch = ledger.claim(ledger.new_claim(), &[arrival(&event, redelivered)]).await;
        let outcomes = batch.expect("an answer").outcomes;
        assert!(matches!(outcomes[0], ClaimOutcome::InFlight { .. }), "{outcomes:?}");
    }

    // As if the process ended: PostgreSQL closes its session.
    world.end_sessions().await;
    wait_for("the claim to be taken over", || async {
        other.appear().await.ok()?;
        let batch = other.claim(other.new_claim(), &[arrival(&event, false)]).await.ok()?;
        matches!(batch.outcomes[0], ClaimOutcome::Claimed(_)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_released_claim_spends_no_attempt() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let batch = ledger.claim(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("claimed");
    ledger.release(batch.claim).await.expect("released");
    let batch = ledger.claim(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("claimed");
    let ClaimOutcome::Claimed(claimed) = &batch.outcomes[0] else { panic!("not claimed again") };
    assert_eq!((claimed.job.attempt, claimed.job.run), (0, 0));
}

#[tokio::test]
async fn an_event_overtaken_by_a_newer_one_restarts_nothing() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let signup = Uuid::new_v4();
    let (first, second) = (submitted(signup), submitted(signup));
    ledger.claim(Uuid::new_v4(), &[arrival(&first, false)]).await.expect("claimed");
    let newer = ledger.claim(Uuid::new_v4(), &[arrival(&second, false)]).await.expect("claimed");
    assert!(matches!(newer.outcomes[0], ClaimOutcome::Claimed(_)));
    // The replica that received the first event crashes, so the event is redelivered.
    let late = ledger.claim(Uuid::new_v4(), &[arrival(&first, true)]).await.expect("claimed");
    assert_eq!(late.outcomes, [ClaimOutcome::Superseded]);
    let settled = ledger
        .settle(newer.claim, &[completion(&newer.outcomes[0])], ClaimRest::Empty)
        .await
        .expect("settled");
    assert!(settled.recorded.len() == 1, "the claim of the newer event was not taken over");
    let audit = world.audit("customerio_sync_restarted").await;
    assert_eq!((audit.len(), &audit[0]["details"]["run"]), (1, &serde_json::json!(1)));
}

#[tokio::test]
async fn a_settled_message_is_answered_from_before_the_event_that_follows_it() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let signup = Uuid::new_v4();
    let (first, second) = (submitted(signup), submitted(signup));
    let batch = ledger.claim(Uuid::new_v4(), &[arrival(&first, false)]).await.expect("claimed");
    let settlement = refusal(&batch.outcomes[0]);
    let settled =
        ledger.settle(batch.claim, &[settlement], ClaimRest::Empty).await.expect("settled");
    let report = &settled.outbox[0].reports[0];

    // The process ended before the acknowledgement, and the corrected event is next in the queue.
    let arrivals = [arrival(&first, true), arrival(&second, false)];
    let batch = ledger.claim(Uuid::new_v4(), &arrivals).await.expect("claimed");
    let ClaimOutcome::Settled(again) = &batch.outcomes[0] else { panic!("{:?}", batch.outcomes) };
    assert_eq!(again.job.attempt_id(), report.job.attempt_id());
    assert_eq!((&again.verdict, again.at), (&report.verdict, report.at));
    let ClaimOutcome::Claimed(claimed) = &batch.outcomes[1] else { panic!("{:?}", batch.outcomes) };
    assert_eq!(claimed.job.run, 1);
}

#[tokio::test]
async fn a_job_remembers_only_the_50_newest_earlier_events() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let signup = Uuid::new_v4();
    let events: Vec<_> = (0..60).map(|_| submitted(signup)).collect();
    for event in &events {
        let batch = ledger.claim(Uuid::new_v4(), &[arrival(event, false)]).await.expect("claimed");
        assert!(matches!(batch.outcomes[0], ClaimOutcome::Claimed(_)));
    }
    let job = world.job(signup, "initial").await.expect("a job");
    let remembered = job["earlier_events"].as_array().expect("a list");
    assert_eq!(
        (remembered.len(), &remembered[0]),
        (50, &events[58]["event_id"]),
        "the newest come first"
    );
}

fn failure(job: Uuid, run: i32, reason: Reason) -> FailedMessage {
    let attempt_id = AttemptId { job_id: job, run, attempt: 0 };
    FailedMessage {
        message_id: format!("{attempt_id}:failed"),
        job: Some(MessageJob::Named(job)),
        attempt_id: Some(attempt_id),
        reason,
        error_type: None,
        error_message: "refused".to_owned(),
        error_path: None,
        headers: serde_json::json!({}),
        content_type: None,
        body: b"{}".to_vec(),
        original_exchange: String::new(),
        original_routing_key: String::new(),
        failed_at: chrono::Utc::now(),
    }
}

#[tokio::test]
async fn a_failure_of_an_earlier_run_is_mirrored_as_resolved() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let signup = Uuid::new_v4();
    ledger.claim(Uuid::new_v4(), &[arrival(&submitted(signup), false)]).await.expect("claimed");
    let job = world.job_id(signup, "initial").await;
    // The second event starts run 1 before the failure of run 0 is mirrored.
    ledger.claim(Uuid::new_v4(), &[arrival(&submitted(signup), false)]).await.expect("claimed");
    let late = failure(job, 0, Reason::Permanent);
    ledger.mirror(&[late.clone(), late]).await.expect("mirrored");
    let failures = world.failures().await;
    assert_eq!((failures.len(), &failures[0]["resolution"]), (1, &serde_json::json!("superseded")));
}

#[tokio::test]
async fn the_mirror_waits_for_the_signup_before_it_locks_its_job() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let signup = Uuid::new_v4();
    ledger.claim(Uuid::new_v4(), &[arrival(&submitted(signup), false)]).await.expect("claimed");
    let job = world.job_id(signup, "initial").await;
    let mut settling = world.pool.begin().await.expect("begun");
    let lock_signup = sqlx::query("SELECT FROM signups WHERE id = $1 FOR NO KEY UPDATE");
    lock_signup.bind(signup).execute(&mut *settling).await.expect("locked");
    let mirroring = tokio::spawn({
        let ledger = ledger.clone();
        async move { ledger.mirror(&[failure(job, 0, Reason::DeliveryLimit)]).await }
    });
    wait_for("the mirror to wait for a lock", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND datname = current_database()";
        (world.count(sql).await == 1).then_some(())
    })
    .await;
    // If the mirror held the job, a transaction that holds the signup would deadlock with it here.
    let lock_job = sqlx::query(
        "SELECT FROM signup_customerio_sync_jobs WHERE id = $1 FOR NO KEY UPDATE NOWAIT",
    );
    lock_job.bind(job).execute(&mut *settling).await.expect("the job is not locked");
    settling.rollback().await.expect("rolled back");
    mirroring.await.expect("the task ends").expect("mirrored");
    let job = world.job(signup, "initial").await.expect("a job");
    assert_eq!(job["status"], "failed");
}

#[tokio::test]
async fn a_failure_of_an_unknown_job_is_mirrored_without_a_job_id() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    ledger.mirror(&[failure(Uuid::new_v4(), 0, Reason::Exhausted)]).await.expect("mirrored");
    let failures = world.failures().await;
    assert_eq!((failures.len(), &failures[0]["job_id"]), (1, &serde_json::Value::Null));
}

#[tokio::test]
async fn only_the_start_of_an_unprocessable_message_is_read() {
    let world = World::new().await;
    let ledger = migrated_ledger(&world).await;
    let sql = "
        INSERT INTO sync_failures
            (message_id, reason, error_message, headers, body, original_exchange,
            original_routing_key, failed_at)
        VALUES ('m', 'unprocessable', '$: x', jsonb_build_object('x-large', repeat('h', 50000)),
            convert_to(repeat('b', 5000000), 'UTF8'), 'signup.events', 'signup.submitted', now())
        RETURNING id";
    let id: Uuid = sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("a message");
    let limits = MessageReadLimits { body_bytes: 100, header_bytes: 1000 };
    let (listed, total) = ledger.unprocessable(50, 0, limits).await.expect("a page");
    let shown = ledger.unprocessable_message(id, limits).await.expect("read").expect("it is open");
    assert_eq!((listed.len(), total), (1, 1));
    assert_eq!(listed[0], shown);
    assert_eq!((shown.body.len(), shown.body_bytes), (100, 5_000_000));
    assert_eq!(shown.headers, None, "large headers are not read");
    let limits = MessageReadLimits { body_bytes: 100, header_bytes: 100_000 };
    let (listed, _) = ledger.unprocessable(50, 0, limits).await.expect("a page");
    assert!(listed[0].headers.is_some());
}
