//! Storage of what the simulator received.
//!
//! People are identified as Customer.io documents it: an `id` that is new, with an e-mail address
//! that is known, joins the person with that address, unless that person has another `id`. An
//! address that belongs to another person, or that would change while it identifies the person, is
//! not set: Customer.io accepts the call and shows an *attribute update failure* only in its UI.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

/// Attributes by name, as they were written, so that no number is rounded.
pub(super) type RawAttributes = BTreeMap<String, Box<RawValue>>;

/// Identifier of a person in a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
            Self::Id(text) | Self::Email(text) => text.clone(),
            Self::Other(kind, value) => format!("{kind}:{value}"),
        }
    }
}

/// A tracked event.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TrackedEvent {
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) timestamp: Option<i64>,
    pub(super) attributes: RawAttributes,
}

/// A tracked event as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct ReceivedEvent {
    #[serde(flatten)]
    event: TrackedEvent,
    person: String,
    /// Number of repeats, which were ignored.
    repeats: u64,
}

/// A person as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct PersonView {
    identifier: String,
    attributes: RawAttributes,
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

/// Behaviour that Customer.io does not document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Settings {
    /// Which of two updates of an attribute wins.
    pub(super) attribute_order: AttributeOrder,
    /// The order in which the operations of a batch are processed.
    pub(super) batch_order: BatchOrder,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum AttributeOrder {
    /// The one with the later timestamp; of two with the same, the last one.
    #[default]
    Time,
    /// The last one.
    Arrival,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BatchOrder {
    /// As listed.
    #[default]
    Listed,
    /// The last one first.
    Reversed,
}

/// Number of a person in [`Records`].
type PersonNumber = u64;

#[derive(Debug, Default)]
struct Person {
    /// The first key is the one that is shown.
    keys: Vec<PersonKey>,
    /// Values by name, each with the Unix time of the update that set it. A removed attribute keeps
    /// its time, so that an older update does not set it again.
    attributes: BTreeMap<String, (Option<Box<RawValue>>, i64)>,
}

impl Person {
    fn has_id(&self) -> bool {
        self.keys.iter().any(|key| matches!(key, PersonKey::Id(_)))
    }

    fn email(&self) -> Option<&PersonKey> {
        self.keys.iter().find(|key| matches!(key, PersonKey::Email(_)))
    }

    fn view(&self) -> PersonView {
        let attributes = self.attributes.iter();
        PersonView {
            identifier: self.keys.first().map(PersonKey::text).unwrap_or_default(),
            attributes: attributes
                .filter_map(|(name, (value, _))| Some((name.clone(), value.clone()?)))
                .collect(),
        }
    }
}

#[derive(Debug)]
struct StoredEvent {
    event: TrackedEvent,
    person: PersonNumber,
    repeats: u64,
}

#[derive(Debug, Default)]
struct Records {
    people: BTreeMap<PersonNumber, Person>,
    by_key: HashMap<PersonKey, PersonNumber>,
    next_person: PersonNumber,
    events: Vec<StoredEvent>,
    by_event_id: HashMap<String, usize>,
    calls: Vec<ReceivedCall>,
    attribute_update_failures: u64,
    settings: Settings,
}

/// People, events and calls, shared by all requests.
#[derive(Debug, Default)]
pub(super) struct Store(Mutex<Records>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings(&self) -> Settings {
        self.lock().settings
    }

    pub(super) fn set(&self, settings: Settings) {
        self.lock().settings = settings;
    }

    pub(super) fn record_call(&self, path: String, status: Option<u16>, events: Vec<String>) {
        self.lock().calls.push(ReceivedCall { path, status, at: chrono::Utc::now(), events });
    }

    /// Updates a person. An older update does not overwrite a newer one; null and the empty string
    /// remove an attribute.
    pub(super) fn identify(
        &self,
        identifier: PersonKey,
        attributes: RawAttributes,
        timestamp: Option<i64>,
    ) {
        let timestamp = timestamp.unwrap_or_else(|| chrono::Utc::now().timestamp());
        let mut records = self.lock();
        let email = attributes.get("email").and_then(|json| text(json));
        let email = email.map(|email| PersonKey::new("email", &email));
        let number = records.identified(&identifier, email.as_ref());
        let sets_email = email.is_none_or(|email| records.may_set(number, &identifier, &email));
        records.attribute_update_failures += u64::from(!sets_email);
        for (name, value) in attributes {
            if sets_email || name != "email" {
                records.update(number, name, value, timestamp);
            }
        }
    }

    /// Tracks an event. An event with a known id is a repeat, which is only counted.
    pub(super) fn track(&self, identifier: &PersonKey, event: TrackedEvent) {
        let mut records = self.lock();
        if let Some(&known) = event.id.as_ref().and_then(|id| records.by_event_id.get(id)) {
            records.events[known].repeats += 1;
            return;
        }
        let person = records.identified(identifier, None);
        if let Some(id) = &event.id {
            let index = records.events.len();
            records.by_event_id.insert(id.clone(), index);
        }
        records.events.push(StoredEvent { event, person, repeats: 0 });
    }

    pub(super) fn delete(&self, identifier: &PersonKey) {
        let mut records = self.lock();
        if let Some(number) = records.by_key.get(identifier).copied() {
            records.people.remove(&number);
            records.by_key.retain(|_, person| *person != number);
        }
    }

    pub(super) fn clear(&self) {
        let mut records = self.lock();
        *records = Records { settings: records.settings, ..Records::default() };
    }

    /// Returns one person's attributes.
    pub(super) fn person(&self, identifier: &PersonKey) -> Option<PersonView> {
        let records = self.lock();
        Some(records.people.get(records.by_key.get(identifier)?)?.view())
    }

    pub(super) fn people(&self) -> Vec<PersonView> {
        self.lock().people.values().map(Person::view).collect()
    }

    pub(super) fn events(&self) -> Vec<ReceivedEvent> {
        let records = self.lock();
        let person = |number| records.people.get(&number).map(|person| person.view().identifier);
        let received = |stored: &StoredEvent| ReceivedEvent {
            event: stored.event.clone(),
            person: person(stored.person).unwrap_or_default(),
            repeats: stored.repeats,
        };
        records.events.iter().map(received).collect()
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
    /// The person that a call means. A person that is not known is created.
    fn identified(&mut self, identifier: &PersonKey, email: Option<&PersonKey>) -> PersonNumber {
        if let Some(&known) = self.by_key.get(identifier) {
            return known;
        }
        // A new id joins the person with the address, if that one has no id.
        let with_address = email.and_then(|email| self.by_key.get(email)).copied();
        let joined = with_address.filter(|number| {
            let is_free = self.people.get(number).is_some_and(|person| !person.has_id());
            is_free && matches!(identifier, PersonKey::Id(_))
        });
        let number = joined.unwrap_or_else(|| {
            self.next_person += 1;
            self.next_person
        });
        self.people.entry(number).or_default().keys.insert(0, identifier.clone());
        self.by_key.insert(identifier.clone(), number);
        number
    }

    /// Whether the person may get the address.
    fn may_set(&self, number: PersonNumber, identifier: &PersonKey, email: &PersonKey) -> bool {
        match identifier {
            PersonKey::Email(_) => identifier == email,
            _ => self.by_key.get(email).is_none_or(|owner| *owner == number),
        }
    }

    fn update(&mut self, number: PersonNumber, name: String, value: Box<RawValue>, timestamp: i64) {
        let by_time = self.settings.attribute_order == AttributeOrder::Time;
        let Some(person) = self.people.get_mut(&number) else { return };
        if by_time && person.attributes.get(&name).is_some_and(|(_, set)| *set > timestamp) {
            return;
        }
        if name == "email" {
            let address = text(&value).map(|email| PersonKey::new("email", &email));
            let before = person.email().cloned();
            if address != before {
                person.keys.retain(|key| !matches!(key, PersonKey::Email(_)));
                person.keys.extend(address.clone());
                before.map(|before| self.by_key.remove(&before));
                self.by_key.extend(address.map(|address| (address, number)));
            }
        }
        let is_removed = matches!(value.get(), "null" | "\"\"");
        person.attributes.insert(name, ((!is_removed).then_some(value), timestamp));
    }
}

/// The contents of a JSON string that is not empty.
fn text(json: &RawValue) -> Option<String> {
    serde_json::from_str::<String>(json.get()).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(json: Value) -> RawAttributes {
        serde_json::from_str(&json.to_string()).expect("a map")
    }

    fn shown(store: &Store, kind: &str, value: &str) -> Option<Value> {
        let person = store.person(&PersonKey::new(kind, value))?;
        Some(serde_json::to_value(person).expect("JSON"))
    }

    fn identify(store: &Store, kind: &str, value: &str, given: Value, time: i64) {
        store.identify(PersonKey::new(kind, value), attributes(given), Some(time));
    }

    fn failures(store: &Store) -> u64 {
        store.summary()["attributeUpdateFailures"].as_u64().expect("a number")
    }

    #[test]
    fn a_new_id_with_a_known_address_joins_the_person() {
        let store = Store::default();
        identify(&store, "email", "ann@example.com", json!({ "plan": "gold" }), 1);
        identify(&store, "id", "c-1", json!({ "email": "Ann@example.com" }), 2);
        let person = shown(&store, "id", "c-1").expect("known");
        assert_eq!(person["attributes"], json!({ "email": "Ann@example.com", "plan": "gold" }));
        assert_eq!((store.people().len(), failures(&store)), (1, 0));
    }

    #[test]
    fn an_address_of_another_person_is_not_set() {
        let store = Store::default();
        identify(&store, "id", "c-1", json!({ "email": "ann@example.com" }), 1);
        identify(&store, "id", "c-2", json!({ "email": "ann@example.com", "plan": 1 }), 2);
        assert_eq!(shown(&store, "id", "c-2").expect("known")["attributes"], json!({ "plan": 1 }));
        assert_eq!(failures(&store), 1);
    }

    #[test]
    fn an_address_changes_unless_it_identifies_the_person() {
        let store = Store::default();
        identify(&store, "id", "c-1", json!({ "email": "a@example.com" }), 1);
        identify(&store, "id", "c-1", json!({ "email": "b@example.com" }), 2);
        assert!(shown(&store, "email", "a@example.com").is_none());
        assert!(shown(&store, "email", "b@example.com").is_some());
        assert_eq!(failures(&store), 0);

        identify(&store, "email", "b@example.com", json!({ "email": "c@example.com" }), 3);
        assert!(shown(&store, "email", "c@example.com").is_none());
        assert_eq!(failures(&store), 1);
    }

    #[test]
    fn a_removed_attribute_is_not_set_by_an_older_update() {
        let store = Store::default();
        identify(&store, "id", "c-1", json!({ "plan": null }), 2);
        identify(&store, "id", "c-1", json!({ "plan": "gold" }), 1);
        assert_eq!(shown(&store, "id", "c-1").expect("known")["attributes"], json!({}));
    }

    #[test]
    fn updates_are_ordered_as_the_settings_say() {
        let store = Store::default();
        identify(&store, "id", "c-1", json!({ "plan": "new" }), 2);
        identify(&store, "id", "c-1", json!({ "plan": "old" }), 1);
        assert_eq!(shown(&store, "id", "c-1").expect("known")["attributes"]["plan"], "new");
        let by_arrival = AttributeOrder::Arrival;
        store.set(Settings { attribute_order: by_arrival, ..Settings::default() });
        identify(&store, "id", "c-1", json!({ "plan": "old" }), 1);
        assert_eq!(shown(&store, "id", "c-1").expect("known")["attributes"]["plan"], "old");
    }
}
