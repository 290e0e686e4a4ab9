//! The data of a signup, and when each value of it was stated. Pure.
//!
//! Events may arrive in any order. For each value, the event that happened last wins, and the value
//! keeps the time of that event: Customer.io orders updates of an attribute by this time.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::event::{BetSlip, Customer, Event, EventDetails, Scalar};

/// The data of a signup.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Signup {
    /// Id of the operator that the person signed up with.
    pub operator_id: Option<String>,
    /// Name of that operator.
    pub operator_name: Option<String>,
    /// The person. Without an e-mail address, the signup counts as not known yet.
    pub customer: Customer,
    /// Attributes that are passed through to the profile.
    pub attributes: BTreeMap<String, Scalar>,
    /// Id of the extraction that read the bet slip.
    pub extraction_id: Option<String>,
    /// The bet slip, once it is confirmed. Its values are stated together.
    pub bet_slip: Option<BetSlip>,
    /// When the values were stated.
    pub stated: StatedTimes,
    /// The identifier under which Customer.io has the person, or may have it because the result of
    /// a call is not known.
    pub contact_id: Option<String>,
    /// Whether Customer.io has accepted the person under that identifier.
    pub is_contact_accepted: bool,
}

/// When the values of a signup were stated.
///
/// Most values have the time of the newest event that states values of their kind. Only the times
/// of the others are stored one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatedTimes {
    /// Time of the newest event that states data about the person.
    pub customer: Option<DateTime<Utc>>,
    /// Time of the newest submission, which states operator and attributes.
    pub submission: Option<DateTime<Utc>>,
    /// Time of the event that states the bet slip.
    pub confirmation: Option<DateTime<Utc>>,
    /// Times of values that older events stated, by the name of the profile's attribute.
    pub older: BTreeMap<String, DateTime<Utc>>,
}

impl StatedTimes {
    /// Whether the attribute with this name is about the person, and may be stated by any event.
    pub fn is_of_customer(name: &str) -> bool {
        CUSTOMER_FIELDS.iter().any(|(field, _)| *field == name)
    }

    /// When the value of the attribute with this name was stated: about the person, or about the
    /// operator or of another attribute, which only submissions state.
    pub fn of(&self, name: &str) -> Option<DateTime<Utc>> {
        self.older.get(name).copied().or(self.newest(name))
    }

    /// Records when the value of the attribute with this name was stated. The newest event of its
    /// kind must be recorded before.
    fn record(&mut self, name: &str, time: Option<DateTime<Utc>>) {
        match time {
            Some(time) if self.newest(name) != Some(time) => {
                self.older.insert(name.to_owned(), time);
            }
            _ => {
                self.older.remove(name);
            }
        }
    }

    /// Time of the newest event that states values of the same kind.
    fn newest(&self, name: &str) -> Option<DateTime<Utc>> {
        if Self::is_of_customer(name) { self.customer } else { self.submission }
    }
}

/// A field of a signup, by the name of the profile's attribute.
type Field = (&'static str, fn(&mut Signup) -> &mut Option<String>);

/// The fields about the person.
const CUSTOMER_FIELDS: [Field; 6] = [
    ("id", |signup| &mut signup.customer.id),
    ("email", |signup| &mut signup.customer.email),
    ("first_name", |signup| &mut signup.customer.first_name),
    ("last_name", |signup| &mut signup.customer.last_name),
    ("phone", |signup| &mut signup.customer.phone),
    ("state", |signup| &mut signup.customer.state),
];
/// The fields about the operator.
const OPERATOR_FIELDS: [Field; 2] = [
    ("operator_id", |signup| &mut signup.operator_id),
    ("operator_name", |signup| &mut signup.operator_name),
];

impl Signup {
    /// Adds what `event`, which happened at `time`, states. Of two values of the same time, the one
    /// that arrives last wins.
    pub fn apply(&mut self, event: &Event, time: DateTime<Utc>) {
        let before = self.stated.clone();
        let mut stated = Self { customer: event.customer.clone(), ..Self::default() };
        let mut states_customer = event.customer != Customer::default();
        match &event.details {
            EventDetails::Submitted { operator_id, operator_name, attributes } => {
                stated.operator_id = Some(operator_id.clone());
                stated.operator_name.clone_from(operator_name);
                stated.attributes.clone_from(attributes.as_map());
                states_customer = true;
                self.stated.submission = self.stated.submission.max(Some(time));
            }
            EventDetails::Confirmed { extraction_id, bet_slip } => {
                if self.stated.confirmation.is_none_or(|newest| newest <= time) {
                    self.extraction_id.clone_from(extraction_id);
                    self.bet_slip = Some(bet_slip.clone());
                    self.stated.confirmation = Some(time);
                }
            }
        }
        if states_customer {
            self.stated.customer = self.stated.customer.max(Some(time));
        }
        for (name, field) in CUSTOMER_FIELDS.into_iter().chain(OPERATOR_FIELDS) {
            let known = field(self).is_some().then(|| before.of(name)).flatten();
            let value = field(&mut stated).take();
            self.stated.record(name, known.max(value.is_some().then_some(time)));
            if value.is_some() && known <= Some(time) {
                *field(self) = value;
            }
        }
        for name in self.attributes.keys().filter(|name| !stated.attributes.contains_key(*name)) {
            self.stated.record(name, before.of(name));
        }
        for (name, value) in stated.attributes {
            let known = self.attributes.contains_key(&name).then(|| before.of(&name)).flatten();
            self.stated.record(&name, known.max(Some(time)));
            if known <= Some(time) {
                self.attributes.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::event::{EventType, RawEvent, parse};

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_739_880_000 + second, 0).expect("a time")
    }

    fn parsed(event_type: EventType, body: Value) -> Event {
        let body = body.to_string();
        parse(RawEvent::new(event_type, body.as_bytes())).expect("valid")
    }

    fn submission(customer: Value, attributes: Value) -> Event {
        let mut customer = customer;
        if customer["email"].is_null() {
            customer["email"] = json!("ann@example.com");
        }
        let body = json!({ "signup_id": uuid::Uuid::from_u128(7), "operator_id": "op-1",
            "customer": customer, "attributes": attributes });
        parsed(EventType::Submitted, body)
    }

    fn confirmation(customer: Value) -> Event {
        let body = json!({ "signup_id": uuid::Uuid::from_u128(7), "customer": customer,
            "bet_slip": { "bet_amount": 1, "team_bet_on": "Lakers", "odds": 2, "confidence": 1 } });
        parsed(EventType::Confirmed, body)
    }

    fn signup(events: &[(&Event, i64)]) -> Signup {
        let mut signup = Signup::default();
        for (event, second) in events {
            signup.apply(event, at(*second));
        }
        signup
    }

    #[test]
    fn values_of_one_event_need_no_times_of_their_own() {
        let event = submission(json!({ "phone": "1" }), json!({ "plan": "gold" }));
        let signup = signup(&[(&event, 0), (&confirmation(json!(null)), 60)]);
        assert_eq!(signup.stated.older, BTreeMap::new());
        assert_eq!(signup.stated.of("phone"), Some(at(0)));
        assert_eq!(signup.stated.of("plan"), Some(at(0)));
        assert_eq!(signup.stated.confirmation, Some(at(60)));
    }

    #[test]
    fn each_value_keeps_the_time_of_the_event_that_stated_it() {
        let event = submission(json!({ "first_name": "Ann", "phone": "1" }), json!({ "plan": 1 }));
        let renamed = confirmation(json!({ "first_name": "Anne" }));
        let signup = signup(&[(&event, 0), (&renamed, 60)]);
        assert_eq!(signup.stated.of("first_name"), Some(at(60)));
        assert_eq!(signup.stated.of("phone"), Some(at(0)));
        assert_eq!(signup.stated.of("plan"), Some(at(0)));
        let older: Vec<_> = signup.stated.older.keys().collect();
        assert_eq!(older, ["email", "phone"], "only these are stored apart");
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_does_not_matter(
            stated in prop::collection::vec((any::<bool>(), 0..4_u8, 0..16_u8), 1..6),
            order in any::<prop::sample::Index>(),
        ) {
            let event = |(number, (confirms, fields, attributes)): (usize, &(bool, u8, u8))| {
                let value = |bit: u8, of: u8| (of >> bit & 1 == 1).then(|| format!("v{number}"));
                let customer = json!({ "phone": value(0, *fields), "state": value(1, *fields) });
                let attribute = |bit| Some((format!("a{bit}"), value(bit, *attributes)?));
                let named = (0..4).filter_map(attribute);
                let event = if *confirms {
                    confirmation(customer)
                } else {
                    submission(customer, Value::Object(named.map(|(n, v)| (n, v.into())).collect()))
                };
                (event, number as i64)
            };
            let events: Vec<_> = stated.iter().enumerate().map(event).collect();
            let mut shuffled: Vec<_> = events.iter().map(|(event, time)| (event, *time)).collect();
            let in_order = signup(&shuffled);
            let turn = order.index(shuffled.len());
            shuffled.rotate_left(turn);
            shuffled.reverse();
            prop_assert_eq!(signup(&shuffled), in_order);
        }
    }
}
