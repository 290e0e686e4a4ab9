//! The runtime for lapin, whose streams are repaired.
//!
//! lapin takes the type of its stream from its runtime. TLS is below the repair: lapin gets what
//! was decrypted.

use std::{
    future::Future,
    io::{self, Read, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;

use super::RepairedStream;

/// A TCP or TLS connection to RabbitMQ whose incoming frames are repaired.
type Connected = RepairedStream<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;

/// The executor is that of tokio.
pub(in crate::broker) type RepairingRuntime = Runtime<RuntimeParts<Tokio, RepairingReactor>>;

/// A runtime for lapin.
pub(in crate::broker) fn repairing_runtime(frame_bytes_max: usize) -> RepairingRuntime {
    let reactor = RepairingReactor { tokio: Tokio::current(), frame_bytes_max };
    Runtime::new(RuntimeParts::new(Tokio::current(), reactor))
}

/// The reactor of tokio, except for its streams.
#[derive(Debug, Clone)]
pub(in crate::broker) struct RepairingReactor {
    tokio: Tokio,
    frame_bytes_max: usize,
}

impl Reactor for RepairingReactor {
    type TcpStream = Connected;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.tokio.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.tokio.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.tokio.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let (connecting, bytes) = (self.tokio.tcp_connect_addr(address), self.frame_bytes_max);
        async move { Ok(RepairedStream::new(AsyncTcpStream::Plain(connecting.await?), bytes)) }
    }
}
