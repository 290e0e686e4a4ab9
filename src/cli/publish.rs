//! `customerio-sync publish`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use super::{Error, sample};
use crate::{
    app,
    broker::{Address, Connection, Message, Publisher, Topology},
    config::Config,
    event::{CLOUDEVENTS_CONTENT_TYPE, EventType},
    runtime::metrics::Metrics,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File with one event per line; default: standard input.
    #[arg(conflicts_with = "sample")]
    file: Option<PathBuf>,
    /// Publish N generated events.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Routing key for all lines, which are then published without being parsed.
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,
    /// Maximum events per second.
    #[arg(long, value_name = "N")]
    rate: Option<std::num::NonZeroU32>,
}

/// Maximum publishes that wait for their confirms.
const MAX_UNCONFIRMED_PUBLISHES: usize = 1000;

pub(super) async fn run(config: &Config, args: Args) -> Result<(), Error> {
    config.require_broker()?;
    let metrics = Arc::new(Metrics::default());
    let topology = Arc::new(Topology::new(&config.retry.delays, &config.topology));
    let address = Address::new(&config.broker, &config.tls).map_err(app::Error::from)?;
    let connection =
        Connection::open("publish", address, topology, &metrics).await.map_err(app::Error::from)?;
    let publisher = Publisher::new(connection.clone(), &config.broker, metrics);
    let count = match (args.sample, &args.file) {
        (Some(count), _) => {
            let events = sample::events()
                .take(count)
                .map(|(event_type, body)| Ok(sample_message(event_type, &body)));
            let bar = progress(Some(count as u64));
            publish_all(&publisher, stream::iter(events), &bar, args.rate).await?
        }
        (None, Some(path)) => {
            let file = tokio::fs::File::open(path).await;
            let file =
                file.map_err(|error| Error::Other(format!("opening {}: {error}", path.display())))?;
            publish_lines(&publisher, file, &args).await?
        }
        (None, None) => publish_lines(&publisher, tokio::io::stdin(), &args).await?,
    };
    connection.close().await;
    eprintln!("{count} events published and confirmed by the broker");
    Ok(())
}

fn sample_message(event_type: EventType, body: &Value) -> Message {
    Message::event(event_type.routing_key(), None, body.to_string().into_bytes())
}

async fn publish_lines(
    publisher: &Publisher,
    input: impl AsyncRead + Unpin,
    args: &Args,
) -> Result<u64, Error> {
    let lines = stream::unfold(
        (BufReader::new(input).split(b'\n'), 0_usize),
        |(mut lines, number)| async move {
            match lines.next_segment().await {
                Ok(Some(line)) => Some((Ok((number + 1, line)), (lines, number + 1))),
                Ok(None) => None,
                Err(error) => Some((
                    Err(Error::Other(format!("reading line {}: {error}", number + 1))),
                    (lines, number + 1),
                )),
            }
        },
    );
    let routing_key = args.routing_key.as_deref();
    let events = lines.filter_map(|line| async move {
        match line {
            Ok((_, line)) if line.trim_ascii().is_empty() => None,
            Ok((number, line)) => Some(line_message(number, line, routing_key)),
            Err(error) => Some(Err(error)),
        }
    });
    let bar = progress(None);
    publish_all(publisher, std::pin::pin!(events), &bar, args.rate).await
}

/// Returns a line, unchanged, as a message. Without a routing key, the line must be an event, whose
/// content determines the key.
fn line_message(number: usize, line: Vec<u8>, routing_key: Option<&str>) -> Result<Message, Error> {
    if let Some(key) = routing_key {
        return Ok(Message::event(key, None, line));
    }
    let failed = |problem: &str| {
        Error::Other(format!(
            "line {number}: {problem}; earlier lines may be unconfirmed, and later lines were not \
                published"
        ))
    };
    let event: Value =
        serde_json::from_slice(&line).map_err(|error| failed(&format!("not JSON: {error}")))?;
    let is_enveloped = event.get("specversion").is_some();
    let data = if is_enveloped { &event["data"] } else { &event };
    if !data.is_object() {
        return Err(failed("expected a JSON object"));
    }
    let event_type =
        if data.get("bet_slip").is_some() { EventType::Confirmed } else { EventType::Submitted };
    Ok(Message::event(
        event_type.routing_key(),
        is_enveloped.then_some(CLOUDEVENTS_CONTENT_TYPE),
        line,
    ))
}

async fn publish_all(
    publisher: &Publisher,
    events: impl stream::Stream<Item = Result<Message, Error>>,
    bar: &ProgressBar,
    rate: Option<std::num::NonZeroU32>,
) -> Result<u64, Error> {
    // No burst: the limit applies from the first event.
    let quota = |rate| governor::Quota::per_second(rate).allow_burst(std::num::NonZeroU32::MIN);
    let limiter = rate.map(|rate| governor::RateLimiter::direct(quota(rate)));
    let limiter = limiter.as_ref();
    let published = events.then(|event| async move {
        if let Some(limiter) = limiter {
            limiter.until_ready().await;
        }
        event
    });
    let published = published.map(|event| async move {
        publisher.publish_routable(&event?).await.map_err(|unroutable| {
            Error::Other(format!(
                "{unroutable}: the event was not stored, and the events after it may be unpublished"
            ))
        })
    });
    let mut published = std::pin::pin!(published.buffer_unordered(MAX_UNCONFIRMED_PUBLISHES));
    let mut count = 0;
    let mut first_error = None;
    while let Some(result) = published.next().await {
        match result {
            Ok(()) => {
                count += 1;
                bar.inc(1);
            }
            Err(error) => {
                first_error = Some(error);
                break;
            }
        }
    }
    bar.finish_and_clear();
    first_error.map_or(Ok(count), Err)
}

fn progress(count: Option<u64>) -> ProgressBar {
    let bar = count.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let template = "{bar:40} {pos}/{len} events  {per_sec}  {eta}";
    bar.set_style(ProgressStyle::with_template(template).expect("the template is valid"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
