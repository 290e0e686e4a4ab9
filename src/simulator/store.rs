//! What the simulator received.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use serde_json::{Map, Value, json};

/// How a person is named in a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Identifier {
    Id(String),
    Email(String),
    Other(String, String),
}

impl Identifier {
    pub(super) fn new(kind: &str, value: &str) -> Self {
        match kind {
            "id" => Self::Id(value.to_owned()),
            // Addresses compare without case.
            "email" => Self::Email(value.to_lowercase()),
            _ => Self::Other(kind.to_owned(), value.to_owned()),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Email(email) => email.clone(),
            Self::Other(kind, value) => format!("{kind}:{value}"),
        }
    }
}

/// A tracked event.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Tracked {
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) person: String,
    pub(super) timestamp: Option<i64>,
    pub(super) attributes: Map<String, Value>,
    /// How often it came again and was ignored.
    pub(super) repeats: u64,
}

#[derive(Debug, Default)]
struct Person {
    /// Each with the time of the update that set it.
    attributes: BTreeMap<String, (Value, i64)>,
}

/// A call, and the status it was answered with; none for a connection that was reset.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Call {
    path: String,
    status: Option<u16>,
    at: chrono::DateTime<chrono::Utc>,
    /// The ids of the events in it, whether they were taken or not.
    events: Vec<String>,
}

#[derive(Debug, Default)]
struct Inner {
    people: BTreeMap<Identifier, Person>,
    by_email: HashMap<String, Identifier>,
    events: Vec<Tracked>,
    by_event_id: HashMap<String, usize>,
    calls: Vec<Call>,
    attribute_update_failures: u64,
}

/// People, events and calls.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Inner>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_call(&self, path: String, status: Option<u16>, events: Vec<String>) {
        self.lock().calls.push(Call { path, status, at: chrono::Utc::now(), events });
    }

    /// Updates a person. An older update does not overwrite a newer one; null and the empty string
    /// remove.
    pub(super) fn identify(
        &self,
        identifier: Identifier,
        attributes: &Map<String, Value>,
        timestamp: Option<i64>,
    ) {
        let timestamp = timestamp.unwrap_or_else(|| chrono::Utc::now().timestamp());
        let mut inner = self.lock();
        let email = attributes.get("email").and_then(Value::as_str).map(str::to_lowercase);
        let key = inner.resolve(identifier);
        let is_taken = inner.claim_email(&key, email.as_deref());
        let person = inner.people.entry(key).or_default();
        for (name, value) in attributes {
            if is_taken && name == "email" {
                continue;
            }
            if person.attributes.get(name).is_some_and(|(_, set)| *set > timestamp) {
                continue;
            }
            if value.is_null() || value == "" {
                person.attributes.remove(name);
            } else {
                person.attributes.insert(name.clone(), (value.clone(), timestamp));
            }
        }
    }

    /// Tracks an event; one whose id is known is only counted.
    pub(super) fn track(&self, identifier: Identifier, event: Tracked) {
        let mut inner = self.lock();
        if let Some(&known) = event.id.as_ref().and_then(|id| inner.by_event_id.get(id)) {
            inner.events[known].repeats += 1;
            return;
        }
        let person = inner.resolve(identifier);
        inner.people.entry(person.clone()).or_default();
        if let Some(id) = &event.id {
            let index = inner.events.len();
            inner.by_event_id.insert(id.clone(), index);
        }
        inner.events.push(Tracked { person: person.text(), ..event });
    }

    pub(super) fn delete(&self, identifier: Identifier) {
        let mut inner = self.lock();
        let key = inner.resolve(identifier);
        inner.people.remove(&key);
        inner.by_email.retain(|_, person| *person != key);
    }

    pub(super) fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// One person's attributes.
    pub(super) fn person(&self, identifier: Identifier) -> Option<Value> {
        let inner = self.lock();
        let key = inner.resolve(identifier);
        inner.people.get(&key).map(|person| person_json(&key, person))
    }

    pub(super) fn people(&self) -> Value {
        self.lock().people.iter().map(|(key, person)| person_json(key, person)).collect()
    }

    pub(super) fn events(&self) -> Vec<Tracked> {
        self.lock().events.clone()
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub(super) fn summary(&self) -> Value {
        let inner = self.lock();
        let mut by_status = BTreeMap::new();
        for call in &inner.calls {
            let status =
                call.status.map_or_else(|| "reset".to_owned(), |status| status.to_string());
            *by_status.entry(status).or_insert(0_u64) += 1;
        }
        json!({
            "people": inner.people.len(),
            "events": inner.events.len(),
            "repeats": inner.events.iter().map(|event| event.repeats).sum::<u64>(),
            "calls": inner.calls.len(),
            "callsByStatus": by_status,
            "attributeUpdateFailures": inner.attribute_update_failures,
        })
    }
}

impl Inner {
    /// The person that an address belongs to, if it does.
    fn resolve(&self, identifier: Identifier) -> Identifier {
        match &identifier {
            Identifier::Email(email) => self.by_email.get(email).cloned().unwrap_or(identifier),
            _ => identifier,
        }
    }

    /// Gives the address to the person; true if it belongs to another. Customer.io answers 200
    /// then, and shows an attribute update failure in its own pages only.
    fn claim_email(&mut self, person: &Identifier, email: Option<&str>) -> bool {
        let email = match (person, email) {
            (Identifier::Email(email), _) => email.clone(),
            (_, Some(email)) => email.to_owned(),
            (_, None) => return false,
        };
        let owner = self.by_email.entry(email).or_insert_with(|| person.clone());
        let is_taken = owner != person;
        self.attribute_update_failures += u64::from(is_taken);
        is_taken
    }
}

fn person_json(key: &Identifier, person: &Person) -> Value {
    let attributes: Map<_, _> =
        person.attributes.iter().map(|(name, (value, _))| (name.clone(), value.clone())).collect();
    json!({ "identifier": key.text(), "attributes": attributes })
}
