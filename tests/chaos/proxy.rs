//! A TCP proxy that misbehaves when it is told to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What the proxy does with bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Carries them.
    Pass,
    /// Ends every connection, and every new one at once.
    Refuse,
    /// Holds everything back.
    Stall,
    /// Carries what the client says, and holds the server's answers back.
    Mute,
    /// Carries each piece this much later.
    Slow,
}

const LATE: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Control {
    mode: watch::Sender<Mode>,
    /// Counts the orders to cut all connections.
    cuts: watch::Sender<u64>,
}

/// The proxy, running until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    control: Arc<Control>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts one in front of `targets`, each `host:port`. The first that takes a connection gets
    /// it.
    pub(crate) async fn start(targets: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address");
        let control =
            Arc::new(Control { mode: watch::Sender::new(Mode::Pass), cuts: watch::Sender::new(0) });
        let mut tasks = JoinSet::new();
        let shared = control.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    connections.spawn(carry(client, targets.clone(), shared.clone()));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, control, _tasks: tasks }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.control.mode.send_replace(mode);
        if mode == Mode::Refuse {
            self.cut();
        }
    }

    /// Ends every connection; what was held back is lost.
    pub(crate) fn cut(&self) {
        self.control.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(client: TcpStream, targets: Vec<String>, control: Arc<Control>) {
    let mut cuts = control.cuts.subscribe();
    if *control.mode.borrow() == Mode::Refuse {
        return;
    }
    let carried = async {
        let Some(server) = connect(&targets).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let said = copy(from_client, to_server, control.mode.subscribe(), &[Mode::Stall]);
        let answered =
            copy(from_server, to_client, control.mode.subscribe(), &[Mode::Stall, Mode::Mute]);
        // When one side ends, the other does: both protocols' clients take that for the end.
        tokio::select! {
            () = said => {}
            () = answered => {}
        }
    };
    tokio::select! {
        () = carried => {}
        _ = cuts.changed() => {}
    }
}

async fn connect(targets: &[String]) -> Option<TcpStream> {
    for target in targets {
        if let Ok(server) = TcpStream::connect(target).await {
            return Some(server);
        }
    }
    None
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    held: &[Mode],
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| !held.contains(mode)).await.is_err() {
            return;
        }
        if *mode.borrow() == Mode::Slow {
            tokio::time::sleep(LATE).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
