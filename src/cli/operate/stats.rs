//! `customerio-sync stats`.

use serde_json::Value;

use super::{Error, client::Client, table};

pub(super) async fn run(client: &Client) -> Result<(), Error> {
    let stats = client.get("/stats", &[]).await?;
    client.show(&stats, page);
    Ok(())
}

fn page(stats: &Value) -> String {
    let fact = |pointer: &str| stats.pointer(pointer).map(table::cell).unwrap_or_default();
    let waiting = match &stats["messagesWaiting"] {
        Value::Null => "unknown".to_owned(),
        number => table::cell(number),
    };
    table::of_facts(&[
        ("mode", fact("/mode")),
        ("signups of the last 24 hours", fact("/last24Hours/signups")),
        ("of these not in Customer.io", fact("/last24Hours/notSynced")),
        ("oldest of them received at", fact("/last24Hours/oldestNotSyncedAt")),
        ("unprocessable messages of the last 24 hours", fact("/last24Hours/unprocessable")),
        ("messages waiting in queues", waiting),
        ("open failures", fact("/openFailures")),
        ("unprocessable messages", fact("/unprocessable")),
        ("jobs pending", fact("/byStatus/pending")),
        ("jobs processing", fact("/byStatus/processing")),
        ("jobs completed", fact("/byStatus/completed")),
        ("of these in mock mode", fact("/mockCompleted")),
        ("jobs failed", fact("/byStatus/failed")),
        ("calls to Customer.io", fact("/breaker/meaning")),
        ("according to the replica", fact("/breaker/replica")),
    ])
}
