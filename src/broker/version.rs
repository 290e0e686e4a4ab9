//! The version of RabbitMQ, which it sends before the login. lapin does not keep it.

use futures_util::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use lapin::{
    protocol::{AMQPClass, connection::AMQPMethod, parse_class},
    types::AMQPValue,
};

/// The protocol header of AMQP 0-9-1 (section 4.2.2 of its specification).
const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Bytes before the payload of a frame: type, channel and size of the payload.
const FRAME_HEAD_BYTES: usize = 7;
/// Maximum payload that is read. RabbitMQ sends less than 1 KiB.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Reads the version from `connection.start`, and closes the stream. Returns `None` if the server
/// does not answer like RabbitMQ. The caller limits the time.
pub(super) async fn server_version(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Option<String> {
    stream.write_all(PROTOCOL_HEADER).await.ok()?;
    stream.flush().await.ok()?;
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await.ok()?;
    let [_, _, _, size @ ..] = head;
    let size = usize::try_from(u32::from_be_bytes(size)).ok()?;
    if size > PAYLOAD_BYTES_MAX {
        return None;
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload).await.ok()?;
    version_in(&payload)
}

fn version_in(payload: &[u8]) -> Option<String> {
    let (_, class) = parse_class(payload).ok()?;
    let AMQPClass::Connection(AMQPMethod::Start(start)) = class else { return None };
    match start.server_properties.inner().get("version")? {
        AMQPValue::LongString(version) => Some(version.to_string()),
        _ => None,
    }
}

/// Whether a version such as `3.10.8` is `major.minor` or newer. A text that is no version counts
/// as old.
pub(super) fn is_at_least(version: &str, minimum: (u32, u32)) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    (major, minor) >= (Some(minimum.0), Some(minimum.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, is_new) in [
            ("3.10.8", true),
            ("3.9.13", false),
            ("4.0.5", true),
            ("3.10", true),
            ("3.8.0-rc.1", false),
            ("", false),
        ] {
            assert_eq!(is_at_least(version, (3, 10)), is_new, "{version}");
        }
    }

    #[test]
    fn other_bytes_have_no_version() {
        assert_eq!(version_in(b""), None);
        assert_eq!(version_in(b"HTTP/1.1 400 Bad Request"), None);
    }
}
