//! Storage of what the simulator received.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use serde_json::{Map, Value, json};

/// Identifier of a person in a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum PersonKey {
    Id(String),
    Email(String),
    Other(String, String),
}

impl PersonKey {
    pub(super) fn new(kind: &str, value: &str) -> Self {
        match kind {
            "id" => Self::Id(value.to_owned()),
            // Addresses are compared without regard to case.
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
pub(super) struct TrackedEvent {
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) person: String,
    pub(super) timestamp: Option<i64>,
    pub(super) attributes: Map<String, Value>,
    /// Number of repeats, which were ignored.
    pub(super) repeats: u64,
}

#[derive(Debug, Default)]
struct Person {
    /// Values by name, each with the Unix time of the update that set it.
    attributes: BTreeMap<String, (Value, i64)>,
}

/// A call with the status of its response, `None` if the connection was reset.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ReceivedCall {
    path: String,
    status: Option<u16>,
    at: chrono::DateTime<chrono::Utc>,
    /// Ids of the events in it, whether they were processed or not.
    events: Vec<String>,
}

#[derive(Debug, Default)]
struct Records {
    people: BTreeMap<PersonKey, Person>,
    by_email: HashMap<String, PersonKey>,
    events: Vec<TrackedEvent>,
    by_event_id: HashMap<String, usize>,
    calls: Vec<ReceivedCall>,
    attribute_update_failures: u64,
}

/// People, events and calls, shared by all requests.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Records>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_call(&self, path: String, status: Option<u16>, events: Vec<String>) {
        self.lock().calls.push(ReceivedCall { path, status, at: chrono::Utc::now(), events });
    }

    /// Updates a person. An older update does not overwrite a newer one; null and the empty string
    /// remove an attribute.
    pub(super) fn identify(
        &self,
        identifier: PersonKey,
        attributes: &Map<String, Value>,
        timestamp: Option<i64>,
    ) {
        let timestamp = timestamp.unwrap_or_else(|| chrono::Utc::now().timestamp());
        let mut records = self.lock();
        let email = attributes.get("email").and_then(Value::as_str).map(str::to_lowercase);
        let key = records.resolve(identifier);
        let is_taken = records.assign_email(&key, email.as_deref());
        let person = records.people.entry(key).or_default();
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

    /// Tracks an event. An event with a known id is a repeat, which is only counted.
    pub(super) fn track(&self, identifier: PersonKey, event: TrackedEvent) {
        let mut records = self.lock();
        if let Some(&known) = event.id.as_ref().and_then(|id| records.by_event_id.get(id)) {
            records.events[known].repeats += 1;
            return;
        }
        let person = records.resolve(identifier);
        records.people.entry(person.clone()).or_default();
        if let Some(id) = &event.id {
            let index = records.events.len();
            records.by_event_id.insert(id.clone(), index);
        }
        records.events.push(TrackedEvent { person: person.text(), ..event });
    }

    pub(super) fn delete(&self, identifier: PersonKey) {
        let mut records = self.lock();
        let key = records.resolve(identifier);
        records.people.remove(&key);
        records.by_email.retain(|_, person| *person != key);
    }

    pub(super) fn clear(&self) {
        *self.lock() = Records::default();
    }

    /// Returns one person's attributes.
    pub(super) fn person(&self, identifier: PersonKey) -> Option<Value> {
        let records = self.lock();
        let key = records.resolve(identifier);
        records.people.get(&key).map(|person| person_json(&key, person))
    }

    pub(super) fn people(&self) -> Value {
        self.lock().people.iter().map(|(key, person)| person_json(key, person)).collect()
    }

    pub(super) fn events(&self) -> Vec<TrackedEvent> {
        self.lock().events.clone()
    }

    pub(super) fn calls(&self) -> Vec<ReceivedCall> {
        self.lock().calls.clone()
    }

    pub(super) fn summary(&self) -> Value {
        let records = self.lock();
        let mut by_status = BTreeMap::new();
        for call in &records.calls {
            let status =
                call.status.map_or_else(|| "reset".to_owned(), |status| status.to_string());
            *by_status.entry(status).or_insert(0_u64) += 1;
        }
        json!({
            "people": records.people.len(),
            "events": records.events.len(),
            "repeats": records.events.iter().map(|event| event.repeats).sum::<u64>(),
            "calls": records.calls.len(),
            "callsByStatus": by_status,
            "attributeUpdateFailures": records.attribute_update_failures,
        })
    }
}

impl Records {
    /// Returns the person that an address belongs to, else `identifier` itself.
    fn resolve(&self, identifier: PersonKey) -> PersonKey {
        match &identifier {
            PersonKey::Email(email) => self.by_email.get(email).cloned().unwrap_or(identifier),
            _ => identifier,
        }
    }

    /// Assigns the address to the person. Returns true if it belongs to another person: then
    /// Customer.io answers 200 and shows an attribute update failure only in its own UI.
    fn assign_email(&mut self, person: &PersonKey, email: Option<&str>) -> bool {
        let email = match (person, email) {
            (PersonKey::Email(email), _) => email.clone(),
            (_, Some(email)) => email.to_owned(),
            (_, None) => return false,
        };
        let owner = self.by_email.entry(email).or_insert_with(|| person.clone());
        let is_taken = owner != person;
        self.attribute_update_failures += u64::from(is_taken);
        is_taken
    }
}

fn person_json(key: &PersonKey, person: &Person) -> Value {
    let attributes: Map<_, _> =
        person.attributes.iter().map(|(name, (value, _))| (name.clone(), value.clone())).collect();
    json!({ "identifier": key.text(), "attributes": attributes })
}
