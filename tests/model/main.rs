//! Checks a model of the protocol exhaustively: claim, call, settlement, outbox, take-over,
//! cleanup, an operator's run and retry, and the delivery limit, with crashes, redeliveries and
//! copies at any step.

mod protocol;

use protocol::{Budget, Fault, Protocol};
use stateright::{Checker, HasDiscoveries, Model};

const NOTHING: Budget = Budget {
    crashes: [0, 0],
    lost_channels: 0,
    copies: 0,
    cleanups: 0,
    manual_retries: 0,
    operator_runs: 0,
};

/// A number of events, and what happens to them. All of it at once has too many states.
struct Scenario {
    name: &'static str,
    events: u8,
    budget: Budget,
}

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "a claim is reset, an operator runs the job, and a replica crashes",
        events: 1,
        budget: Budget { crashes: [1, 0], cleanups: 1, operator_runs: 1, ..NOTHING },
    },
    Scenario {
        name: "a message is copied, and both replicas crash",
        events: 1,
        budget: Budget { crashes: [1, 1], copies: 1, ..NOTHING },
    },
    Scenario {
        name: "a message is copied, a channel is lost, and a replica crashes",
        events: 1,
        budget: Budget { crashes: [1, 0], lost_channels: 1, copies: 1, ..NOTHING },
    },
    Scenario {
        name: "an operator retries a failed job, and a replica crashes",
        events: 1,
        budget: Budget { crashes: [1, 0], manual_retries: 1, ..NOTHING },
    },
    Scenario {
        name: "a second event restarts the job, and a replica crashes",
        events: 2,
        budget: Budget { crashes: [1, 0], ..NOTHING },
    },
];

/// Returns the number of states that were checked, and the properties that do not hold.
fn check(scenario: &Scenario, fault: Option<Fault>) -> (usize, Vec<&'static str>) {
    let &Scenario { events, ref budget, .. } = scenario;
    let protocol = || Protocol { events, budget: budget.clone(), fault };
    let checker = protocol().checker().threads(2);
    let checker = match fault {
        None => checker,
        Some(_) => checker.finish_when(HasDiscoveries::AnyFailures),
    };
    let checker = checker.spawn_bfs().join();
    let properties = protocol().properties();
    let is_violated = |name: &&'static str| {
        let is_wanted = name.starts_with("a job completes");
        checker.discovery(name).is_some() != is_wanted
    };
    let names = properties.iter().map(|property| property.name);
    (checker.unique_state_count(), names.filter(is_violated).collect())
}

#[test]
fn the_protocol_keeps_its_promises() {
    for scenario in &SCENARIOS {
        let (states, violated) = check(scenario, None);
        println!("{}: {states} states", scenario.name);
        assert_eq!(violated, Vec::<&str>::new(), "{}", scenario.name);
    }
}

#[test]
fn every_planted_fault_is_found() {
    for (fault, property) in [
        (Fault::NoFence, "an end state of a run is final"),
        (Fault::EarlyAcknowledgement, "an open job has a message"),
        (Fault::LostClaimAcknowledged, "an open job has a message"),
        (Fault::NoOutbox, "every end state has its outcome"),
        (Fault::NoRecheck, "no call after the end of its run"),
        (Fault::GivenUpWithoutOutcome, "every end state has its outcome"),
        (Fault::LivingClaimTakenOver, "no attempt has two calls at a time"),
        (Fault::NoLimit, "attempts are within their limit"),
    ] {
        let found = SCENARIOS.iter().any(|scenario| {
            let (_, violated) = check(scenario, Some(fault));
            violated.contains(&property)
        });
        assert!(found, "{fault:?}: {property}");
    }
}
