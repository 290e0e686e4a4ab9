//! The byte stream of an HTTP connection: reports when a request arrives, and replaces the bare
//! responses of the HTTP library by problems.
//!
//! The library answers a request whose head it can't parse by itself, with an empty body. It has no
//! option to change that.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::admin::http::{
    connections::Activity,
    problem::{PROBLEM_JSON, Problem},
};

/// A header of every response of a handler; `middleware` sets it.
const HANDLER_HEADER: &str = "x-content-type-options";
/// Maximum size of a bare response.
const BARE_RESPONSE_BYTES_MAX: usize = 512;
/// Maximum time for sending a last response.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for which a client reads nothing of a response.
const STALLED_TIMEOUT: Duration = Duration::from_secs(60);

/// The stream of one connection.
#[derive(Debug)]
pub(crate) struct HttpStream {
    tcp: TcpStream,
    activity: Arc<Activity>,
    /// The response that is sent in place of a bare one.
    replacement: Option<ReplacedResponse>,
    /// Ends the connection of a client that does not read its response.
    stalled: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct ReplacedResponse {
    bytes: Vec<u8>,
    sent: usize,
}

impl HttpStream {
    pub(crate) fn new(tcp: TcpStream, activity: Arc<Activity>) -> Self {
        Self { tcp, activity, replacement: None, stalled: None }
    }

    /// Fails a write that makes no progress for [`STALLED_TIMEOUT`].
    fn limit<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED_TIMEOUT)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Sends a problem to a client whose request never arrived, and closes the stream.
    pub(crate) async fn refuse(mut self, status: StatusCode) {
        let sending = async {
            self.tcp.write_all(&problem(status)).await?;
            self.tcp.shutdown().await
        };
        // The client may be gone.
        let _ = tokio::time::timeout(LAST_RESPONSE_TIMEOUT, sending).await;
    }
}

/// The bytes of a response with a problem. The connection closes after it.
fn problem(status: StatusCode) -> Vec<u8> {
    let detail = match status {
        StatusCode::REQUEST_TIMEOUT => {
            "the head of the request did not arrive in time; send it over a new connection"
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
            "the head of the request is too large; send less than 32 KiB and at most 100 headers"
        }
        _ => "the head of the request is not valid HTTP/1.1 (RFC 9112)",
    };
    let body = serde_json::to_vec(&Problem::new(status, detail)).expect("a problem is JSON");
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {}\r\n\
        cache-control: no-store\r\n{HANDLER_HEADER}: nosniff\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

/// The status of a bare response with an error, if `bytes` are one.
fn bare_error(bytes: &[u8]) -> Option<StatusCode> {
    if bytes.len() > BARE_RESPONSE_BYTES_MAX || !bytes.starts_with(b"HTTP/1.") {
        return None;
    }
    let head = std::str::from_utf8(bytes).ok()?;
    let is_bare = head.ends_with("\r\n\r\n")
        && head.contains("\r\ncontent-length: 0\r\n")
        && !head.contains(HANDLER_HEADER);
    let status: StatusCode = head.split(' ').nth(1)?.parse().ok()?;
    (is_bare && status.is_client_error()).then_some(status)
}

impl AsyncRead for HttpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.tcp).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            this.activity.work();
        }
        polled
    }
}

impl AsyncWrite for HttpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replacement.is_none() {
            let replacement = |status| ReplacedResponse { bytes: problem(status), sent: 0 };
            this.replacement = bare_error(bytes).map(replacement);
        }
        let Some(replacement) = &mut this.replacement else {
            let polled = Pin::new(&mut this.tcp).poll_write(cx, bytes);
            return this.limit(cx, polled);
        };
        while replacement.sent < replacement.bytes.len() {
            let rest = &replacement.bytes[replacement.sent..];
            let sent = ready!(Pin::new(&mut this.tcp).poll_write(cx, rest))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            replacement.sent += sent;
        }
        this.replacement = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // A bare response has no body, so it is the only slice.
            [only] => self.poll_write(cx, only),
            _ => {
                let this = self.get_mut();
                let polled = Pin::new(&mut this.tcp).poll_write_vectored(cx, slices);
                this.limit(cx, polled)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bare_errors_are_replaced() {
        let bare = "HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
            content-length: 0\r\ndate: Tue, 18 Feb 2025 12:00:00 GMT\r\n\r\n";
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        assert_eq!(bare_error(bare.as_bytes()), Some(status));
        for other in [
            bare.replace("431", "200"),
            bare.replace("length: 0", "length: 5"),
            bare.replace("connection: close", "x-content-type-options: nosniff"),
            format!("{bare}body"),
            bare.replace("HTTP/1.1", "HTTP/9"),
            String::new(),
        ] {
            assert_eq!(bare_error(other.as_bytes()), None, "{other}");
        }
        let replacement = problem(status);
        assert_eq!(bare_error(&replacement), None);
        let replacement = String::from_utf8(replacement).expect("text");
        let (head, body) = replacement.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        assert!(body.contains(r#""status":431"#), "{body}");
    }
}
