//! The ledger's guarantees, asked for directly.

use crate::support::{World, arrival, completion, submitted};
use customerio_sync::{
    job::{Reason, SyncPhase, Ticket, job_id},
    ledger::{FailedMessage, Ledger, Opened, Settled},
};
use uuid::Uuid;

async fn ledger(world: &World) -> Ledger {
    let config = world.config();
    let ledger = Ledger::new(&config.database, 5).expect("a URL");
    ledger.migrate().await.expect("migrated");
    ledger
}

#[tokio::test]
async fn a_lost_claim_changes_nothing() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let first = ledger.open(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("opened");
    let second = ledger.open(Uuid::new_v4(), &[arrival(&event, true)]).await.expect("opened");
    assert!(matches!(second.opened[0], Opened::Claimed(_)), "the redelivery takes over");

    let late =
        ledger.settle(first.claim, vec![completion(&first.opened[0])]).await.expect("settled");
    assert_eq!(late, [Settled::ClaimLost]);
    assert_eq!(
        world
            .count("SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'processing'")
            .await,
        1
    );
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 0);
    assert_eq!(world.count("SELECT count(*) FROM audit_logs").await, 0);

    let now =
        ledger.settle(second.claim, vec![completion(&second.opened[0])]).await.expect("settled");
    assert!(matches!(now[0], Settled::Written(_)));
    let again = ledger.open(Uuid::new_v4(), &[arrival(&event, true)]).await.expect("opened");
    assert!(matches!(again.opened[0], Opened::Settled(_)), "the ledger tells how it ended");
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_found_done() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let claim = Uuid::new_v4();
    ledger.open(claim, &[arrival(&event, false)]).await.expect("opened");
    let batch = ledger.open(claim, &[arrival(&event, false)]).await.expect("opened again");
    assert!(
        matches!(batch.opened[0], Opened::Claimed(_)),
        "it is ours, not in other hands: {:?}",
        batch.opened[0]
    );

    let settlement = completion(&batch.opened[0]);
    let first = ledger.settle(claim, vec![settlement.clone()]).await.expect("settled");
    let second = ledger.settle(claim, vec![settlement]).await.expect("settled again");
    assert_eq!(first, second, "what follows from it is told the second time, too");
    assert_eq!(world.count("SELECT count(*) FROM sync_attempts").await, 1);
    assert_eq!(world.count("SELECT count(*) FROM audit_logs").await, 1);
}

#[tokio::test]
async fn two_replicas_that_open_the_same_message_claim_it_once() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let events: Vec<_> = (0..50).map(|_| submitted(Uuid::new_v4())).collect();
    let arrivals: Vec<_> = events.iter().map(|event| arrival(event, false)).collect();
    let mut reversed = arrivals.clone();
    reversed.reverse();
    let (one, other) = tokio::join!(
        ledger.open(Uuid::new_v4(), &arrivals),
        ledger.open(Uuid::new_v4(), &reversed)
    );
    let opened: Vec<_> =
        [one, other].into_iter().flat_map(|batch| batch.expect("opened").opened).collect();
    let claimed = opened.iter().filter(|one| matches!(one, Opened::Claimed(_))).count();
    let in_flight = opened.iter().filter(|one| matches!(one, Opened::InFlight { .. })).count();
    assert_eq!((claimed, in_flight), (50, 50));
}

#[tokio::test]
async fn a_claim_that_is_given_back_spends_no_attempt() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let event = submitted(Uuid::new_v4());
    let batch = ledger.open(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("opened");
    ledger.release(batch.claim).await.expect("given back");
    let batch = ledger.open(Uuid::new_v4(), &[arrival(&event, false)]).await.expect("opened");
    let Opened::Claimed(work) = &batch.opened[0] else { panic!("claimed again") };
    assert_eq!((work.job.attempt, work.job.run), (0, 0));
}

#[tokio::test]
async fn an_event_that_a_newer_one_has_overtaken_starts_nothing_afresh() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let signup = Uuid::new_v4();
    let (first, second) = (submitted(signup), submitted(signup));
    ledger.open(Uuid::new_v4(), &[arrival(&first, false)]).await.expect("opened");
    let newer = ledger.open(Uuid::new_v4(), &[arrival(&second, false)]).await.expect("opened");
    assert!(matches!(newer.opened[0], Opened::Claimed(_)));
    // The replica that had taken the first one crashes.
    let late = ledger.open(Uuid::new_v4(), &[arrival(&first, true)]).await.expect("opened");
    assert_eq!(late.opened, [Opened::Superseded]);
    let settled =
        ledger.settle(newer.claim, vec![completion(&newer.opened[0])]).await.expect("settled");
    assert!(
        matches!(settled[0], Settled::Written(_)),
        "whoever has the newer one goes on undisturbed"
    );
    let audit = world.audit("customerio_sync_restarted").await;
    assert_eq!((audit.len(), &audit[0]["details"]["run"]), (1, &serde_json::json!(1)));
}

#[tokio::test]
async fn a_job_remembers_no_more_events_than_it_needs() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let signup = Uuid::new_v4();
    let events: Vec<_> = (0..60).map(|_| submitted(signup)).collect();
    for event in &events {
        let batch = ledger.open(Uuid::new_v4(), &[arrival(event, false)]).await.expect("opened");
        assert!(matches!(batch.opened[0], Opened::Claimed(_)));
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
    let ticket = Ticket { job_id: job, run, attempt: 0 };
    FailedMessage {
        message_id: format!("{ticket}:failed"),
        job_id: Some(job),
        ticket: Some(ticket),
        given_up_event: None,
        reason,
        error_type: None,
        error_message: "refused".to_owned(),
        headers: serde_json::json!({}),
        content_type: None,
        body: b"{}".to_vec(),
        original_exchange: String::new(),
        original_routing_key: String::new(),
        failed_at: chrono::Utc::now(),
    }
}

#[tokio::test]
async fn a_failure_of_a_run_that_is_over_is_mirrored_as_resolved() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    let signup = Uuid::new_v4();
    let job = job_id(signup, SyncPhase::Initial);
    ledger.open(Uuid::new_v4(), &[arrival(&submitted(signup), false)]).await.expect("opened");
    // The second event begins run 1 before the failure of run 0 is mirrored.
    ledger.open(Uuid::new_v4(), &[arrival(&submitted(signup), false)]).await.expect("opened");
    let late = failure(job, 0, Reason::Permanent);
    ledger.mirror(&[late.clone(), late]).await.expect("mirrored");
    let failures = world.failures().await;
    assert_eq!((failures.len(), &failures[0]["resolution"]), (1, &serde_json::json!("superseded")));
}

#[tokio::test]
async fn a_failure_of_a_job_that_is_not_known_is_mirrored_without_it() {
    let world = World::new().await;
    let ledger = ledger(&world).await;
    ledger.mirror(&[failure(Uuid::new_v4(), 0, Reason::Exhausted)]).await.expect("mirrored");
    let failures = world.failures().await;
    assert_eq!((failures.len(), &failures[0]["job_id"]), (1, &serde_json::Value::Null));
}
