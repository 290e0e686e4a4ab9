//! Tasks that run until the shutdown. One that ends earlier is a defect of the process.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// Tasks with names. They are aborted when this is dropped.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
    }

    /// Waits for a task to end, and returns its name. `None` if there is no task left.
    pub async fn next_ended(&mut self) -> Option<&'static str> {
        let id = match self.set.join_next_with_id().await? {
            Ok((id, ())) => id,
            // The hook for panics has reported it.
            Err(error) => error.id(),
        };
        Some(self.names.remove(&id).unwrap_or("unknown"))
    }

    /// Waits for all tasks to end.
    pub async fn join_all(&mut self) {
        while self.next_ended().await.is_some() {}
    }

    /// Aborts the tasks that still run, and waits for their end.
    pub async fn abort_all(&mut self) {
        self.set.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_has_ended() {
        let mut tasks = Tasks::default();
        tasks.spawn("waits", std::future::pending());
        tasks.spawn("panics", async { panic!("on purpose") });
        assert_eq!(tasks.next_ended().await, Some("panics"));
        tasks.abort_all().await;
        assert_eq!(tasks.next_ended().await, None);
    }
}
