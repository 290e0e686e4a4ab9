//! The messages that upstream services publish in a round: events in order and out of order,
//! repeated events, and malformed messages. Each is published until it is confirmed.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{confirmed, contact, submitted};

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
    /// Signups with a second submission, which may restart a job.
    pub(crate) restarted: Vec<Uuid>,
    /// People whom Customer.io refuses until the faults end.
    pub(crate) refused: Vec<String>,
}

const SUBMITTED: &str = "signup.submitted";
const CONFIRMED: &str = "signup.extraction_confirmed";

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
        let first = submitted(signup);
        self.add(SUBMITTED, first.to_string().into_bytes());
        self.jobs.push((signup, "initial"));
        if rng.f32() < 0.8 {
            self.add(CONFIRMED, confirmed(signup).to_string().into_bytes());
            self.jobs.push((signup, "enriched"));
        }
        if rng.f32() < 0.1 {
            self.add(SUBMITTED, first.to_string().into_bytes());
        }
        if rng.f32() < 0.05 {
            self.restarted.push(signup);
            self.add(SUBMITTED, submitted(signup).to_string().into_bytes());
        }
        if rng.f32() < 0.05 {
            self.refused.push(contact(signup));
        }
        if rng.f32() < 0.05 {
            let body = malformed(signup, number, rng);
            self.malformed.push(body.clone());
            self.add(if rng.bool() { SUBMITTED } else { CONFIRMED }, body);
        }
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
