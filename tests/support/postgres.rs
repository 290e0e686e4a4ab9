//! The database of a world.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, Row, postgres::PgRow};
use uuid::Uuid;

use super::{World, wait_for};

impl World {
    pub(crate) async fn rows(&self, sql: &'static str) -> Vec<PgRow> {
        sqlx::query(sql)
            .fetch_all(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Executes statements that return nothing.
    pub(crate) async fn execute(&self, sql: &str) {
        let executed = self.pool.execute(AssertSqlSafe(sql.to_owned())).await;
        executed.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Ends every session of the database but this one, so that clients have to connect again.
    pub(crate) async fn end_sessions(&self) {
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql)
            .fetch_one(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The job of a signup and phase, as JSON with the columns' names.
    pub(crate) async fn job(&self, signup: Uuid, phase: &str) -> Option<Value> {
        let sql = "SELECT to_jsonb(j) AS j FROM signup_customerio_sync_jobs j WHERE signup_id = \
            $1 AND sync_phase = $2";
        let row =
            sqlx::query(sql).bind(signup).bind(phase).fetch_optional(&self.pool).await.ok()??;
        Some(row.get("j"))
    }

    /// The id of the job of a signup and phase, which exists.
    pub(crate) async fn job_id(&self, signup: Uuid, phase: &str) -> Uuid {
        let job = self.job(signup, phase).await.expect("a job");
        job["id"].as_str().expect("a text").parse().expect("a UUID")
    }

    pub(crate) async fn wait_for_job(&self, signup: Uuid, phase: &str, status: &str) -> Value {
        let what = format!("the {phase} job to be {status}");
        wait_for(&what, || async {
            self.job(signup, phase).await.filter(|job| job["status"] == status)
        })
        .await
    }

    /// Waits until the job has failed at least once and waits for a retry.
    pub(crate) async fn wait_for_retry(&self, signup: Uuid, phase: &str) -> Value {
        let is_waiting = |job: &Value| job["status"] == "pending" && job["attempt_count"] != 0;
        wait_for("the job to wait for a retry", || async {
            self.job(signup, phase).await.filter(is_waiting)
        })
        .await
    }

    pub(crate) async fn signup(&self, signup: Uuid) -> Value {
        let row = sqlx::query("SELECT to_jsonb(s) AS s FROM signups s WHERE id = $1")
            .bind(signup)
            .fetch_one(&self.pool);
        row.await.expect("the signup is there").get("s")
    }

    pub(crate) async fn audit(&self, action: &str) -> Vec<Value> {
        let sql = "SELECT to_jsonb(a) AS a FROM audit_logs a WHERE action = $1 ORDER BY id";
        let rows =
            sqlx::query(sql).bind(action).fetch_all(&self.pool).await.expect("the audit log");
        rows.iter().map(|row| row.get("a")).collect()
    }

    /// The mirrored failures, oldest first.
    pub(crate) async fn failures(&self) -> Vec<Value> {
        let rows = self
            .rows("SELECT to_jsonb(f) AS f FROM sync_failures f ORDER BY mirrored_at, message_id")
            .await;
        rows.iter().map(|row| row.get("f")).collect()
    }

    pub(crate) async fn wait_for_failures(&self, count: usize) -> Vec<Value> {
        let what = format!("{count} mirrored failures");
        wait_for(&what, || async {
            Some(self.failures().await).filter(|failures| failures.len() >= count)
        })
        .await
    }
}
