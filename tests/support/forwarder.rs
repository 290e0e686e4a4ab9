//! Forwarding connections from one address to another.

use std::net::{SocketAddr, ToSocketAddrs};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// How the present connections end.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Nothing more is forwarded, and they stay open.
    Silence,
    /// They are closed.
    Close,
}

/// Forwards connections until it is dropped.
pub(crate) struct Forwarder {
    addr: SocketAddr,
    /// The end of the present connections, each time that there is one.
    end: watch::Sender<End>,
    _tasks: JoinSet<()>,
}

impl Forwarder {
    /// Listens on `addr`, and forwards each connection to `target`.
    pub(crate) async fn start(addr: SocketAddr, target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let end = watch::Sender::new(End::Close);
        let ends = end.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    connections.spawn(forward(client, target, ends.subscribe()));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr, end, _tasks: tasks })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Forwards nothing more over the present connections, and leaves them open. New ones work.
    pub(crate) fn silence(&self) {
        self.end.send_replace(End::Silence);
    }

    /// Closes the present connections. New ones work.
    pub(crate) fn cut(&self) {
        self.end.send_replace(End::Close);
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr, mut end: watch::Receiver<End>) {
    if let Ok(mut server) = TcpStream::connect(target).await {
        tokio::select! {
            // Fails when a side closes, which ends both.
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            Ok(()) = end.changed() => {
                let end = *end.borrow();
                if let End::Silence = end {
                    std::future::pending::<()>().await;
                }
            }
        }
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
