//! What holds for all bytes of a broker. A property test and a fuzz target check it.

use lapin::protocol::{basic::parse_properties, parse_class};

use super::stream::FrameRepairer;

/// RabbitMQ's default.
const FRAME_BYTES_MAX: usize = 131_072;
const HEAD_BYTES: usize = 7;

/// However the bytes arrive, lapin gets the same; what was repaired once needs no further repair;
/// and lapin decodes the properties of every message in complete frames.
pub fn whatever_arrives_can_be_decoded(bytes: &[u8]) {
    let repaired = feed(bytes, bytes.len().max(1));
    assert_eq!(repaired, feed(bytes, 3), "the result depends on how the bytes arrive");
    assert_eq!(repaired, feed(&repaired, repaired.len().max(1)), "a second repair changes it");
    let mut rest = &repaired[..];
    while let Some((kind, payload, after)) = next_frame(rest) {
        check(kind, payload);
        rest = after;
    }
}

fn feed(bytes: &[u8], part: usize) -> Vec<u8> {
    let (mut repairer, mut ready) = (FrameRepairer::new(FRAME_BYTES_MAX), Vec::new());
    bytes.chunks(part).for_each(|bytes| repairer.feed(bytes, &mut ready));
    ready
}

/// Type and payload of the first frame, and what follows it.
fn next_frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [kind, _, _, size @ ..] = *bytes.first_chunk::<HEAD_BYTES>()?;
    let size = usize::try_from(u32::from_be_bytes(size)).ok()?;
    let (payload, rest) = bytes[HEAD_BYTES..].split_at_checked(size)?;
    Some((kind, payload, rest.get(1..)?))
}

fn check(kind: u8, payload: &[u8]) {
    let is_announcement = matches!(payload, [0, 60, 0, 50 | 60 | 71, ..]);
    match (kind, payload) {
        (2, [0, 60, ..]) if payload.len() >= 14 && payload[13] & 1 == 0 => {
            assert!(parse_properties(&payload[12..]).is_ok(), "{payload:?}");
        }
        // A truncated method is RabbitMQ's fault, and ends the connection.
        (1, _) if is_announcement => drop(parse_class(payload)),
        _ => {}
    }
}
