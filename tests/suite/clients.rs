//! The official client libraries, unmodified, against the simulator.

use crate::support::{World, root};
use serde_json::json;
use std::{path::PathBuf, process::Command};

/// The folder that the client libraries are installed in.
fn clients() -> PathBuf {
    let folder = std::env::var("CLIENTS_DIR")
        .expect("CLIENTS_DIR is not set; run the tests with `./dev test`");
    PathBuf::from(folder)
}

/// Runs a client against the simulator. The client must succeed.
async fn run(world: &World, mut command: Command) {
    let url = format!("http://{}", world.simulator.addr());
    let output = tokio::task::spawn_blocking(move || command.env("SIMULATOR_URL", url).output());
    let output = output.await.expect("the task ends").expect("the client runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Checks that the simulator has received what the clients send.
async fn check_received(world: &World) {
    let person = world.sim("people/c-1").await;
    assert_eq!(person["attributes"], json!({ "email": "ann@example.com", "plan": "gold" }));
    let events = world.events().await;
    assert_eq!(
        (&events[0]["name"], &events[0]["person"]),
        (&json!("signup_submitted"), &json!("c-1"))
    );
    assert_eq!(events[0]["attributes"], json!({ "operator_id": "op-1" }));
    let batched = world.sim("people/c-2").await;
    assert_eq!(batched["attributes"]["plan"], "silver");
    assert_eq!(events[1]["id"], "01JMC0000000000000000000ZZ");
    assert_eq!(
        (events.len(), &events[1]["repeats"]),
        (2, &json!(1)),
        "the repeated event is tracked once"
    );
}

#[tokio::test]
async fn the_node_client_works_against_the_simulator() {
    let world = World::new().await;
    let mut node = Command::new("node");
    node.arg(root().join("tests/clients/client.cjs")).env("CLIENTS_DIR", clients());
    run(&world, node).await;
    check_received(&world).await;
}

#[tokio::test]
async fn the_python_client_works_against_the_simulator() {
    let world = World::new().await;
    let mut python = Command::new(clients().join("python/bin/python"));
    python.arg(root().join("tests/clients/client.py"));
    run(&world, python).await;
    check_received(&world).await;
}
