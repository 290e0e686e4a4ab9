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
    table::of_facts(&[
        ("mode", fact("/mode")),
        ("today's signups not in Customer.io", fact("/today/notSynced")),
        ("oldest of them received at", fact("/today/oldestAt")),
        ("open failures", fact("/openFailures")),
        ("unprocessable messages", fact("/unprocessable")),
        ("jobs pending", fact("/byStatus/pending")),
        ("jobs processing", fact("/byStatus/processing")),
        ("jobs completed", fact("/byStatus/completed")),
        ("of these in mock mode", fact("/mockCompleted")),
        ("jobs failed", fact("/byStatus/failed")),
        ("calls to Customer.io", fact("/breaker/meaning")),
    ])
}
