//! Invariants of the parser, checked by property tests and by the fuzzer.

use super::{CLOUDEVENTS_CONTENT_TYPE, EVENT_BYTES_MAX, EventType, RawEvent, parse};

/// Parses any bytes: the result is a valid event, or a rejection that names the location of the
/// error. The same bytes give the same result again, because everything that is stored comes from
/// them, including the id of a message that has none.
pub fn parse_never_panics_and_is_deterministic(body: &[u8]) {
    for event_type in EventType::ALL {
        for content_type in ["application/json", CLOUDEVENTS_CONTENT_TYPE] {
            let raw =
                RawEvent { content_type: Some(content_type), ..RawEvent::new(event_type, body) };
            let result = parse(raw);
            match &result {
                Ok(event) => assert!(!event.id.is_empty() && body.len() <= EVENT_BYTES_MAX),
                Err(rejected) => {
                    assert!(!rejected.path.is_empty() && !rejected.expected.is_empty())
                }
            }
            assert_eq!(result, parse(raw));
        }
    }
}
