//! Publishes messages with properties as bytes, which no client library can encode.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use lapin::uri::AMQPUri;

/// Maximum time for RabbitMQ to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The properties of a message: the flags of AMQP, and the bytes of the properties that they
/// announce.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawProperties {
    pub(crate) flags: u16,
    pub(crate) bytes: Vec<u8>,
}

impl RawProperties {
    /// A message whose `app_id` is not UTF-8, as a publisher with Latin-1 sends it.
    pub(crate) fn with_latin_1() -> Self {
        Self { flags: 1 << 12 | 1 << 3, bytes: [&[2], &short_string(b"caf\xe9")[..]].concat() }
    }

    /// A message with a header `k` of `depth` arrays inside one another.
    pub(crate) fn with_nested_header(depth: usize) -> Self {
        let mut value = vec![b'V'];
        for _ in 0..depth {
            value = [b"A", &long_string(&value)[..]].concat();
        }
        let table = long_string(&[short_string(b"k"), value].concat());
        Self { flags: 1 << 13 | 1 << 12, bytes: [table, vec![2]].concat() }
    }
}

pub(crate) fn short_string(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).expect("short")], bytes].concat()
}

pub(crate) fn long_string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("a frame").to_be_bytes(), bytes].concat()
}

/// A connection with one channel in confirm mode.
pub(crate) struct RawPublisher {
    stream: TcpStream,
}

impl RawPublisher {
    pub(crate) fn connect(url: &str) -> Self {
        let uri: AMQPUri = url.parse().expect("a URL");
        let stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port));
        let mut publisher = Self { stream: stream.expect("RabbitMQ answers") };
        publisher.stream.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("set");
        publisher.stream.write_all(b"AMQP\x00\x00\x09\x01").expect("written");
        publisher.expect(10, 10);
        let user = &uri.authority.userinfo;
        let login = format!("\0{}\0{}", user.username, user.password);
        let start_ok = [
            long_string(b""),
            short_string(b"PLAIN"),
            long_string(login.as_bytes()),
            short_string(b"en_US"),
        ];
        publisher.method(0, 10, 11, &start_ok.concat());
        let tune = publisher.expect(10, 30);
        publisher.method(0, 10, 31, &[&tune[..6], &[0, 0]].concat());
        publisher.method(0, 10, 40, &[&short_string(uri.vhost.as_bytes())[..], &[0, 0]].concat());
        publisher.expect(10, 41);
        publisher.method(1, 20, 10, &[0]);
        publisher.expect(20, 11);
        publisher.method(1, 85, 10, &[0]);
        publisher.expect(85, 11);
        publisher
    }

    /// Publishes a message, and waits for its confirm.
    pub(crate) fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &RawProperties,
        body: &[u8],
    ) {
        let confirmed = self.try_publish(exchange, routing_key, properties, body);
        assert!(confirmed, "RabbitMQ refuses the message");
    }

    /// Publishes a message. Returns whether RabbitMQ confirms it; if not, the connection is closed.
    pub(crate) fn try_publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &RawProperties,
        body: &[u8],
    ) -> bool {
        let names = [short_string(exchange.as_bytes()), short_string(routing_key)].concat();
        self.method(1, 60, 40, &[&[0, 0], &names[..], &[0]].concat());
        let size = u64::try_from(body.len()).expect("small").to_be_bytes();
        let head = [&[0, 60, 0, 0], &size[..], &properties.flags.to_be_bytes()].concat();
        self.frame(2, 1, &[head, properties.bytes.clone()].concat());
        for part in body.chunks(100_000) {
            self.frame(3, 1, part);
        }
        self.next_method().is_ok_and(|method| method.starts_with(&[0, 60, 0, 80]))
    }

    fn method(&mut self, channel: u16, class: u16, method: u16, arguments: &[u8]) {
        let payload = [&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat();
        self.frame(1, channel, &payload);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let head = [&[kind], &channel.to_be_bytes()[..]].concat();
        let frame = [head, long_string(payload), vec![0xce]].concat();
        // If the connection is closed, reading finds it.
        let _ = self.stream.write_all(&frame);
    }

    /// Reads frames up to a method, and returns its arguments.
    fn expect(&mut self, class: u16, method: u16) -> Vec<u8> {
        let wanted = [class.to_be_bytes(), method.to_be_bytes()].concat();
        let mut found = self.next_method().expect("RabbitMQ answers");
        assert_eq!(found[..4], wanted, "{}", String::from_utf8_lossy(&found));
        found.split_off(4)
    }

    /// Reads frames up to a method: its class, its number and its arguments.
    fn next_method(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head)?;
            let [kind, _, _, size @ ..] = head;
            let mut rest = vec![0; u32::from_be_bytes(size) as usize + 1];
            self.stream.read_exact(&mut rest)?;
            rest.pop();
            // A heartbeat is no method.
            if kind == 1 {
                return Ok(rest);
            }
        }
    }
}
