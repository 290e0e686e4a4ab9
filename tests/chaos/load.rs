//! What upstream services publish in a round: events in order and out of it, once and several
//! times, and some that nobody can understand. Each is published until it is confirmed.

use std::time::Duration;

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{confirmed, contact, submitted};

/// A message to publish.
#[derive(Debug, Clone)]
struct Publication {
    routing_key: &'static str,
    body: Vec<u8>,
    message_id: String,
}

/// What a round publishes.
#[derive(Debug, Default)]
pub(crate) struct Load {
    publications: Vec<Publication>,
    /// Every job that has to come of it.
    pub(crate) jobs: Vec<(Uuid, &'static str)>,
    /// The bodies that nobody can understand.
    pub(crate) malformed: Vec<Vec<u8>>,
    /// Signups of which a second event comes, which may start a job afresh.
    pub(crate) restarted: Vec<Uuid>,
    /// People whom Customer.io refuses while the faults are on.
    pub(crate) refused: Vec<String>,
}

const SUBMITTED: &str = "signup.submitted";
const CONFIRMED: &str = "signup.extraction_confirmed";

impl Load {
    /// The messages of `signups` signups.
    pub(crate) fn new(signups: usize, rng: &mut fastrand::Rng) -> Self {
        let mut load = Self::default();
        for number in 0..signups {
            load.add_signup(number, rng);
        }
        // A message comes up to twenty places early or late: confirmations overtake submissions.
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
            let body = match rng.u8(..3) {
                0 => format!("not json {number}").into_bytes(),
                1 => json!({ "signup_id": signup, "operator_id": 7, "number": number })
                    .to_string()
                    .into_bytes(),
                _ => vec![
                    0xff,
                    0xfe,
                    u8::try_from(number % 251).expect("it fits"),
                    rng.u8(..),
                    rng.u8(..),
                ],
            };
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

    /// Publishes all of it, spread over about `time`, each message until the broker has confirmed
    /// it.
    pub(crate) async fn publish(&self, amqp_url: &str, time: Duration) {
        let pause = time / u32::try_from(self.publications.len()).expect("not so many");
        let mut channel = None;
        for publication in &self.publications {
            while !publish(&mut channel, amqp_url, publication).await {
                channel = None;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// One attempt, and whether it was confirmed.
async fn publish(
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
    matches!(
        tokio::time::timeout(Duration::from_secs(3), attempt).await,
        Ok(Ok(Confirmation::Ack(None)))
    )
}
