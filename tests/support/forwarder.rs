//! Forwarding connections from one address to another.

use std::net::{SocketAddr, ToSocketAddrs};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Forwards connections until it is dropped.
pub(crate) struct Forwarder {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Forwarder {
    /// Listens on `addr`, and forwards each connection to `target`.
    pub(crate) async fn start(addr: SocketAddr, target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    connections.spawn(forward(client, target));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr, _tasks: tasks })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        // Fails when a side closes, which ends both.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

/// The `host:port` of a URL.
pub(crate) fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    rest.rsplit('@').next().unwrap_or(rest)
}

/// The address of a URL.
pub(crate) fn address(url: &str) -> SocketAddr {
    let mut addresses = authority(url).to_socket_addrs().expect("the name is known");
    addresses.next().expect("an address")
}
