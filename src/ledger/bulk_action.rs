//! Bulk actions: dismissals of many failures, and dismissals and replays of many unprocessable
//! messages, in steps by any replica.
//!
//! A step of a dismissal resolves some failures and counts them, in one transaction. A resolved
//! failure is no longer open, and what fails later is left alone. So no list is stored, and two
//! actions on the same failures resolve each of them once. A step of a replay only reserves some
//! messages for a while: the caller publishes each and records it, and a crash in between leads to
//! a repeat, which changes nothing.
//!
//! Bulk retries are in `bulk.rs`, with a table of their own.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Error, Ledger,
    audit::{self, AuditAction, AuditEntry},
    bulk::BulkStatus,
    dismiss::{dismiss_failures, dismiss_messages},
    message_selection::{MessageBase, MessageSelection, MessageSource, open_messages},
    pool::Session,
};
use crate::runtime::text_enum::text_enum;

text_enum! {
    /// What a bulk action does.
    BulkKind {
        /// It dismisses failures.
        DismissFailures = "dismiss_failures",
        /// It dismisses unprocessable messages.
        DismissMessages = "dismiss_unprocessable",
        /// It replays unprocessable messages.
        ReplayMessages = "replay_unprocessable",
    }
}

impl BulkKind {
    const fn audit_action(self) -> AuditAction {
        match self {
            Self::DismissFailures | Self::DismissMessages => AuditAction::BulkDismiss,
            Self::ReplayMessages => AuditAction::BulkReplay,
        }
    }
}

/// A bulk action, as the API returns it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkAction {
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub kind: BulkKind,
    /// The actor that created it.
    pub actor: String,
    /// The filters of the failures or messages, without `jobIds`.
    #[schema(value_type = Object)]
    pub selection: Value,
    /// Number of jobs in `jobIds`, if the failures were selected by job.
    pub job_count: Option<i32>,
    /// The reason for a dismissal.
    pub reason: Option<String>,
    /// Its state.
    pub status: BulkStatus,
    /// Failures or messages that matched when it was created.
    pub eligible: i64,
    /// Failures or messages that it has dismissed or replayed.
    pub done: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The actor that cancelled it.
    pub cancelled_by: Option<String>,
}

/// The result of a cancellation.
#[derive(Debug, Clone, PartialEq)]
pub enum ActionCancellation {
    /// It is cancelled.
    Cancelled(Box<BulkAction>),
    /// It had ended already.
    AlreadyEnded(Box<BulkAction>),
    /// There is no such bulk action.
    Unknown,
}

/// The messages that a step of a replay may reserve.
#[derive(Debug, Clone, Copy)]
pub struct ReplayLimits<'a> {
    /// The origins of messages that can be replayed.
    pub sources: &'a [MessageSource],
    /// Maximum messages per step.
    pub messages_max: i64,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkActionStep {
    /// There is nothing to do now.
    Idle,
    /// The step is done.
    Done,
    /// These messages are reserved for the caller.
    Replay(ReplayStep),
}

/// A step of a replay. The caller publishes each message, records it with
/// [`Ledger::record_replay`], and then calls [`Ledger::end_replay_step`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayStep {
    /// The bulk action.
    pub action: Uuid,
    /// Its actor.
    pub actor: String,
    /// The messages, oldest first.
    pub messages: Vec<Uuid>,
    /// Whether no further message matches.
    pub is_last: bool,
}

/// Time for which the first step of a dismissal is left to the request that created it.
const FIRST_STEP_RESERVED: Duration = Duration::from_secs(5);

/// Time for which the messages of a step are reserved for the replica that replays them.
const REPLAY_RESERVED: Duration = Duration::from_secs(60);

/// A bulk action to create.
pub(super) struct NewAction<'a> {
    pub(super) kind: BulkKind,
    /// A JSON object.
    pub(super) selection: Value,
    pub(super) reason: Option<&'a str>,
    pub(super) eligible: i64,
}

/// A bulk action whose next step the transaction takes.
pub(super) struct DueAction {
    pub(super) id: Uuid,
    kind: BulkKind,
    pub(super) actor: String,
    selection: Value,
    pub(super) reason: Option<String>,
    /// What failed later is left alone.
    pub(super) created_at: DateTime<Utc>,
}

impl DueAction {
    /// Its selection. A selection that only a later release can read is an error.
    pub(super) fn selection<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(self.selection.clone())
            .map_err(|error| sqlx::Error::ColumnDecode {
                index: "selection".to_owned(),
                source: Box::new(error),
            })
            .map_err(Error::doing("reading the selection of a bulk action"))
    }
}

/// A step of a dismissal.
pub(super) struct DismissalStep {
    pub(super) dismissed: i64,
    /// Whether no further failure or message matches.
    pub(super) is_last: bool,
}

impl Ledger {
    /// Records a bulk action.
    pub(super) async fn create_bulk_action(
        &self,
        new: NewAction<'_>,
        actor: &str,
    ) -> Result<Uuid, Error> {
        let NewAction { kind, selection, reason, eligible } = new;
        let id = Uuid::now_v7();
        let reserved = match kind {
            BulkKind::DismissFailures | BulkKind::DismissMessages => FIRST_STEP_RESERVED,
            BulkKind::ReplayMessages => Duration::ZERO,
        };
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a bulk action"))?;
        sqlx::query!(
            r#"
            INSERT INTO bulk_actions
                (id, kind, actor, selection, reason, status, eligible, next_step_at)
            VALUES ($1, $2, $3, $4, $5, 'running', $6, now() + make_interval(secs => $7))
            "#,
            id,
            kind.as_str(),
            actor,
            Json(&selection) as _,
            reason,
            eligible,
            reserved.as_secs_f64(),
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("writing a bulk action"))?;
        let details = json!({
            "bulkActionId": id,
            "kind": kind,
            "selection": selection,
            "reason": reason,
            "eligible": eligible,
        });
        let entry = AuditEntry { action: kind.audit_action(), signup_id: None, details };
        audit::insert(&mut transaction, actor, &[entry]).await?;
        transaction.commit().await.map_err(Error::doing("committing a bulk action"))?;
        Ok(id)
    }

    /// Records a dismissal, and takes its first step, so that a small one is completed when this
    /// returns.
    pub(super) async fn begin_dismissal(
        &self,
        new: NewAction<'_>,
        actor: &str,
    ) -> Result<BulkAction, Error> {
        let id = self.create_bulk_action(new, actor).await?;
        let no_replays = ReplayLimits { sources: &[], messages_max: 0 };
        if let Err(error) = self.take_step(Some(id), no_replays).await {
            // It is recorded, so a replica takes the step again.
            tracing::warn!(%error, "the first step of a dismissal failed, retrying");
        }
        self.recorded_action(id).await
    }

    /// A bulk action that was recorded before.
    pub(super) async fn recorded_action(&self, id: Uuid) -> Result<BulkAction, Error> {
        self.bulk_action(id)
            .await?
            .ok_or(sqlx::Error::RowNotFound)
            .map_err(Error::doing("reading a bulk action that was recorded"))
    }

    /// Takes one step of a running bulk action whose next step is due. One action of each kind runs
    /// at a time, the oldest, and no two replicas take a step of it at the same time.
    pub async fn bulk_action_step(
        &self,
        replays: ReplayLimits<'_>,
    ) -> Result<BulkActionStep, Error> {
        self.take_step(None, replays).await
    }

    /// Takes one step of the action `id`, or of one whose next step is due.
    async fn take_step(
        &self,
        id: Option<Uuid>,
        replays: ReplayLimits<'_>,
    ) -> Result<BulkActionStep, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning a step of a bulk action"))?;
        let Some(action) = lock_due(&mut transaction, id).await? else {
            transaction.commit().await.map_err(Error::doing("ending a step of a bulk action"))?;
            return Ok(BulkActionStep::Idle);
        };
        let id = action.id;
        let step = match step_of(&mut transaction, action, replays).await {
            // The selection is that of a newer release. It must not hold up the other actions.
            Err(Error::Statement { source: sqlx::Error::ColumnDecode { .. }, .. }) => {
                tracing::warn!(
                    %id,
                    "the selection of a bulk action can't be parsed, postponing the action"
                );
                postpone(&mut transaction, id).await?;
                BulkActionStep::Idle
            }
            step => step?,
        };
        transaction.commit().await.map_err(Error::doing("committing a step of a bulk action"))?;
        Ok(step)
    }

    /// Ends a step of a replay. After the last one, the action is completed; another one is due
    /// after `pace`.
    pub async fn end_replay_step(
        &self,
        action: Uuid,
        is_last: bool,
        pace: Duration,
    ) -> Result<(), Error> {
        let mut connection =
            self.pool.acquire().await.map_err(Error::doing("ending a step of a replay"))?;
        record_step(&mut connection, action, 0, is_last, pace).await
    }

    /// Cancels a bulk action. What it has dismissed or replayed stays so.
    pub async fn cancel_bulk_action(
        &self,
        id: Uuid,
        actor: &str,
    ) -> Result<ActionCancellation, Error> {
        let mut transaction =
            self.pool.begin().await.map_err(Error::doing("beginning to cancel a bulk action"))?;
        let cancelled = sqlx::query!(
            r#"
            UPDATE bulk_actions
            SET status = 'cancelled', finished_at = now(), updated_at = now(), cancelled_by = $2
            WHERE id = $1 AND status = 'running'
            "#,
            id,
            actor,
        )
        .execute(&mut *transaction)
        .await
        .map_err(Error::doing("cancelling a bulk action"))?
        .rows_affected();
        if cancelled > 0 {
            let details = json!({ "bulkActionId": id });
            let entry =
                AuditEntry { action: AuditAction::BulkActionCancelled, signup_id: None, details };
            audit::insert(&mut transaction, actor, &[entry]).await?;
        }
        transaction.commit().await.map_err(Error::doing("committing a cancelled bulk action"))?;
        Ok(match self.bulk_action(id).await? {
            None => ActionCancellation::Unknown,
            Some(action) if cancelled > 0 => ActionCancellation::Cancelled(Box::new(action)),
            Some(action) => ActionCancellation::AlreadyEnded(Box::new(action)),
        })
    }

    /// One bulk action, if this release knows its kind.
    pub async fn bulk_action(&self, id: Uuid) -> Result<Option<BulkAction>, Error> {
        sqlx::query_as!(
            BulkAction,
            r#"
            SELECT id, kind AS "kind: _", actor, selection - 'jobIds' AS "selection!",
                jsonb_array_length(selection -> 'jobIds') AS job_count, reason,
                status AS "status: _", eligible, done, created_at, updated_at, finished_at,
                cancelled_by
            FROM bulk_actions
            WHERE id = $1 AND kind = ANY($2)
            "#,
            id,
            &known_kinds() as _,
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(Error::doing("reading a bulk action"))
    }

    /// The bulk actions that changed last, latest first, at most `limit`.
    pub async fn bulk_actions(&self, limit: i64) -> Result<Vec<BulkAction>, Error> {
        sqlx::query_as!(
            BulkAction,
            r#"
            SELECT id, kind AS "kind: _", actor, selection - 'jobIds' AS "selection!",
                jsonb_array_length(selection -> 'jobIds') AS job_count, reason,
                status AS "status: _", eligible, done, created_at, updated_at, finished_at,
                cancelled_by
            FROM bulk_actions
            WHERE kind = ANY($1)
            ORDER BY updated_at DESC
            LIMIT $2
            "#,
            &known_kinds() as _,
            limit,
        )
        .fetch_all(&self.pool)
        .await
        .map_err(Error::doing("listing bulk actions"))
    }
}

/// The kinds that this release knows. A later one may have written others.
fn known_kinds() -> Vec<&'static str> {
    BulkKind::ALL.iter().map(|kind| kind.as_str()).collect()
}

/// Takes a step of a locked action.
async fn step_of(
    connection: &mut Session,
    action: DueAction,
    replays: ReplayLimits<'_>,
) -> Result<BulkActionStep, Error> {
    match action.kind {
        BulkKind::DismissFailures => {
            let step = dismiss_failures(connection, &action).await?;
            record_dismissal(connection, &action, step).await
        }
        BulkKind::DismissMessages => {
            let step = dismiss_messages(connection, &action).await?;
            record_dismissal(connection, &action, step).await
        }
        BulkKind::ReplayMessages => reserve(connection, action, replays).await,
    }
}

/// Lets a minute pass until the next step.
async fn postpone(connection: &mut Session, id: Uuid) -> Result<(), Error> {
    sqlx::query!(
        r#"
        UPDATE bulk_actions
        SET next_step_at = now() + interval '1 minute'
        WHERE id = $1
        "#,
        id
    )
    .execute(connection)
    .await
    .map_err(Error::doing("postponing a bulk action"))?;
    Ok(())
}

/// Locks the action `id`, or the one whose next step has been due for longest. `None` if there is
/// none, or if another replica takes its step.
async fn lock_due(connection: &mut Session, id: Option<Uuid>) -> Result<Option<DueAction>, Error> {
    sqlx::query_as!(
        DueAction,
        r#"
        SELECT id, kind AS "kind: _", actor, selection, reason, created_at
        FROM bulk_actions
        WHERE status = 'running' AND kind = ANY($2)
            AND (
                id = $1::uuid
                OR (
                    $1::uuid IS NULL AND next_step_at <= now()
                    AND id IN (
                        SELECT DISTINCT ON (kind) id
                        FROM bulk_actions
                        WHERE status = 'running'
                        ORDER BY kind, created_at, id
                    )
                )
            )
        ORDER BY next_step_at
        LIMIT 1
        FOR UPDATE SKIP LOCKED
        "#,
        id,
        &known_kinds() as _,
    )
    .fetch_optional(connection)
    .await
    .map_err(Error::doing("finding the next bulk action"))
}

async fn record_dismissal(
    connection: &mut Session,
    action: &DueAction,
    step: DismissalStep,
) -> Result<BulkActionStep, Error> {
    record_step(connection, action.id, step.dismissed, step.is_last, Duration::ZERO).await?;
    Ok(BulkActionStep::Done)
}

/// Reserves the next messages of a replay, or completes it if there are none.
async fn reserve(
    connection: &mut Session,
    action: DueAction,
    limits: ReplayLimits<'_>,
) -> Result<BulkActionStep, Error> {
    let selection: MessageSelection = action.selection()?;
    let (base, cutoff) = (MessageBase::From(limits.sources), Some(action.created_at));
    let messages =
        open_messages(&mut *connection, &selection, base, cutoff, limits.messages_max).await?;
    if messages.is_empty() {
        record_step(connection, action.id, 0, true, Duration::ZERO).await?;
        return Ok(BulkActionStep::Done);
    }
    record_step(connection, action.id, 0, false, REPLAY_RESERVED).await?;
    let is_last = (messages.len() as i64) < limits.messages_max;
    Ok(BulkActionStep::Replay(ReplayStep {
        action: action.id,
        actor: action.actor,
        messages,
        is_last,
    }))
}

/// Records a step of a running action. The next one is due after `pace`, unless it was the last.
async fn record_step(
    connection: &mut Session,
    action: Uuid,
    done: i64,
    is_last: bool,
    pace: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        r#"
        UPDATE bulk_actions
        SET done = done + $2, next_step_at = now() + make_interval(secs => $3),
            updated_at = now(),
            status = CASE WHEN $4 THEN 'completed' ELSE status END,
            finished_at = CASE WHEN $4 THEN now() END
        WHERE id = $1 AND status = 'running'
        "#,
        action,
        done,
        pace.as_secs_f64(),
        is_last,
    )
    .execute(connection)
    .await
    .map_err(Error::doing("writing a step of a bulk action"))?;
    Ok(())
}

/// Counts a message that a replay has published and resolved.
pub(super) async fn count_replay(connection: &mut Session, action: Uuid) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE bulk_actions SET done = done + 1, updated_at = now() WHERE id = $1",
        action
    )
    .execute(connection)
    .await
    .map_err(Error::doing("counting a replay"))?;
    Ok(())
}
