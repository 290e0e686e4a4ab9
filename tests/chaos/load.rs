//! The messages that upstream services publish in a round: events in order and out of order, with
//! equal, missing and wrong times, of people with one signup or several; repeated events, and
//! malformed messages. Each is published until it is confirmed.

use std::time::Duration;

use chrono::DateTime;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::{
    profiles::{Model, Person, Statement},
    support::{confirmed, submitted},
};

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE_AFTER_FAILED_PUBLISH: Duration = Duration::from_millis(100);

/// A message to publish.
#[derive(Debug, Clone)]
struct Publication {
    routing_key: &'static str,
    body: Vec<u8>,
    message_id: String,
}

/// The messages of a round, and what they must lead to.
#[derive(Debug, Default)]
pub(crate) struct Load {
    publications: Vec<Publication>,
    /// The jobs that must exist afterwards: signup and phase.
    pub(crate) jobs: Vec<(Uuid, &'static str)>,
    /// The bodies of the malformed messages.
    pub(crate) malformed: Vec<Vec<u8>>,
    /// Jobs with a second event, which may restart them: signup and phase.
    pub(crate) restarted: Vec<(Uuid, &'static str)>,
    /// People whom Customer.io refuses until the faults end.
    pub(crate) refused: Vec<String>,
    /// Whether messages may exceed their delivery limit, which is low in this round.
    pub(crate) may_exceed_delivery_limit: bool,
    /// What the profiles must contain.
    pub(crate) model: Model,
}

const SUBMITTED: &str = "signup.submitted";
const CONFIRMED: &str = "signup.extraction_confirmed";
/// The times of a round's events are in this many seconds, so that some are equal.
const TIMES: i64 = 60;

impl Load {
    /// Creates the messages of `signups` signups.
    pub(crate) fn new(signups: usize, rng: &mut fastrand::Rng) -> Self {
        let mut load = Self::default();
        for number in 0..signups {
            load.add_signup(number, rng);
        }
        // Messages move by up to twenty places, so that some confirmations overtake their
        // submission.
        let mut placed: Vec<_> = load.publications.drain(..).enumerate().collect();
        placed.sort_by_cached_key(|(place, _)| place + rng.usize(0..20));
        load.publications = placed.into_iter().map(|(_, publication)| publication).collect();
        load
    }

    fn add_signup(&mut self, number: usize, rng: &mut fastrand::Rng) {
        let signup = Uuid::from_u128(rng.u128(..));
        let person = self.choose_person(rng);
        self.jobs.push((signup, "initial"));
        let first = self.add_submission(signup, person, rng);
        if rng.f32() < 0.8 {
            self.jobs.push((signup, "enriched"));
            self.add_confirmation(signup, person, rng);
            if rng.f32() < 0.05 {
                self.restarted.push((signup, "enriched"));
                self.add_confirmation(signup, person, rng);
            }
        }
        if rng.f32() < 0.1 {
            self.add(SUBMITTED, first);
        }
        if rng.f32() < 0.05 {
            self.restarted.push((signup, "initial"));
            self.add_submission(signup, person, rng);
        }
        if rng.f32() < 0.05 {
            self.refused.push(self.model.people[person].identifier().to_owned());
        }
        if rng.f32() < 0.05 {
            let body = malformed(signup, number, rng);
            self.malformed.push(body.clone());
            self.add(if rng.bool() { SUBMITTED } else { CONFIRMED }, body);
        }
    }

    /// A new person, or one with earlier signups.
    fn choose_person(&mut self, rng: &mut fastrand::Rng) -> usize {
        let people = &mut self.model.people;
        if rng.f32() < 0.3 && !people.is_empty() {
            return rng.usize(people.len().saturating_sub(20)..people.len());
        }
        let number = people.len();
        let id = (rng.f32() < 0.8).then(|| format!("c-{number}"));
        let is_id_late = rng.f32() < 0.2;
        people.push(Person { id, is_id_late, email: format!("person-{number}@example.com") });
        number
    }

    fn add_submission(&mut self, signup: Uuid, person: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut event = submitted(signup);
        event["customer"] = customer(&self.model.people[person], true, rng);
        if self.model.people[person].is_id_late {
            event["customer"]["id"] = Value::Null;
        }
        let mut attributes = Map::new();
        for name in ["plan", "points", "source"] {
            if rng.bool() {
                attributes.insert(name.to_owned(), rng.u32(..).into());
            }
        }
        event["attributes"] = attributes.into();
        self.state(signup, person, "initial", &mut event, rng);
        let body = event.to_string().into_bytes();
        self.add(SUBMITTED, body.clone());
        body
    }

    fn add_confirmation(&mut self, signup: Uuid, person: usize, rng: &mut fastrand::Rng) {
        let mut event = confirmed(signup);
        event["bet_slip"]["bet_amount"] = rng.u16(..).into();
        event["bet_slip"]["odds"] = rng.i16(..).into();
        if rng.bool() {
            event["customer"] = customer(&self.model.people[person], rng.bool(), rng);
        }
        self.state(signup, person, "enriched", &mut event, rng);
        self.add(CONFIRMED, event.to_string().into_bytes());
    }

    /// Gives the event a time, equal to others, far ahead or none, and records what it states.
    fn state(
        &mut self,
        signup: Uuid,
        person: usize,
        phase: &'static str,
        event: &mut Value,
        rng: &mut fastrand::Rng,
    ) {
        let base = 1_739_880_000;
        let time = base + rng.i64(0..TIMES);
        let text = |seconds| DateTime::from_timestamp(seconds, 0).expect("a time").to_rfc3339();
        let (stated, time) = match rng.u8(0..20) {
            0 | 1 => (None, None),
            // It is replaced by the time of arrival.
            2 => (Some(text(base + 75 * 365 * 86_400)), None),
            _ => (Some(text(time)), Some(time)),
        };
        event["occurred_at"] = stated.into();
        let mut values = Map::new();
        for part in ["customer", "attributes", "bet_slip"] {
            let fields = event[part].as_object().into_iter().flatten();
            values.extend(fields.map(|(name, value)| (name.clone(), value.clone())));
        }
        values.remove("id");
        let event_id = event["event_id"].as_str().expect("an id").to_owned();
        self.model.statements.push(Statement { person, signup, phase, event_id, time, values });
    }

    fn add(&mut self, routing_key: &'static str, body: Vec<u8>) {
        self.publications.push(Publication {
            routing_key,
            body,
            message_id: Uuid::new_v4().to_string(),
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.publications.len()
    }

    /// Publishes all messages, spread over about `duration`, each until the broker confirms it.
    pub(crate) async fn publish(&self, amqp_url: &str, duration: Duration) {
        let pause = duration / u32::try_from(self.publications.len()).expect("it fits");
        let mut channel = None;
        for publication in &self.publications {
            while !try_publish(&mut channel, amqp_url, publication).await {
                channel = None;
                tokio::time::sleep(PAUSE_AFTER_FAILED_PUBLISH).await;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Data about a person, some of it left out.
fn customer(person: &Person, is_identified: bool, rng: &mut fastrand::Rng) -> Value {
    let mut customer = Map::new();
    if is_identified {
        customer.insert("id".to_owned(), person.id.clone().into());
        customer.insert("email".to_owned(), person.email.clone().into());
    }
    for name in ["first_name", "last_name", "phone", "state"] {
        if rng.bool() {
            customer.insert(name.to_owned(), format!("{:x}", rng.u32(..)).into());
        }
    }
    customer.into()
}

/// Returns a body that is not JSON, not a valid event, or not text. `number` and random bytes make
/// the bodies of a round differ.
fn malformed(signup: Uuid, number: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
    match rng.u8(..3) {
        0 => format!("not json {number}").into_bytes(),
        1 => json!({ "signup_id": signup, "operator_id": 7, "number": number })
            .to_string()
            .into_bytes(),
        _ => {
            let number = u8::try_from(number % 251).expect("it fits");
            vec![0xff, 0xfe, number, rng.u8(..), rng.u8(..)]
        }
    }
}

/// Publishes a message once. Returns whether the broker confirmed it.
async fn try_publish(
    current: &mut Option<(Connection, Channel)>,
    amqp_url: &str,
    publication: &Publication,
) -> bool {
    let attempt = async {
        if current.is_none() {
            let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            *current = Some((connection, channel));
        }
        let Some((_, channel)) = current else { unreachable!("it was opened just now") };
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/json".into())
            .with_message_id(publication.message_id.clone().into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let routing_key = publication.routing_key.into();
        channel
            .basic_publish(
                "signup.events".into(),
                routing_key,
                options,
                &publication.body,
                properties,
            )
            .await?
            .await
    };
    matches!(tokio::time::timeout(CONFIRM_TIMEOUT, attempt).await, Ok(Ok(Confirmation::Ack(None))))
}
