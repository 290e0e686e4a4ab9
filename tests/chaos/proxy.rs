//! A TCP proxy that can be made to misbehave.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// How the proxy treats bytes and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Forwards everything.
    Forward,
    /// Closes every connection, and each new one immediately.
    Refuse,
    /// Withholds the bytes of both sides.
    Stall,
    /// Forwards the bytes of the client and withholds those of the server.
    Mute,
    /// Forwards each piece with a delay of [`SLOW_MODE_DELAY`].
    Slow,
}

const SLOW_MODE_DELAY: Duration = Duration::from_millis(20);
const BUFFER_BYTES: usize = 16 * 1024;

#[derive(Debug)]
struct Control {
    targets: Mutex<Vec<String>>,
    mode: watch::Sender<Mode>,
    /// Number of requests so far to silence all connections.
    silences: watch::Sender<u64>,
    /// Number of requests so far to cut all connections.
    cuts: watch::Sender<u64>,
}

/// A proxy, which runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    control: Arc<Control>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Starts a proxy for `targets`, each `host:port`. Each connection goes to the first target
    /// that accepts it.
    pub(crate) async fn start(targets: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let control = Arc::new(Control {
            targets: Mutex::new(targets),
            mode: watch::Sender::new(Mode::Forward),
            silences: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let mut tasks = JoinSet::new();
        let shared = control.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    connections.spawn(forward(client, shared.clone()));
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

    /// Changes the targets of new connections.
    pub(crate) fn set_targets(&self, targets: Vec<String>) {
        *self.control.targets.lock().expect("not poisoned") = targets;
    }

    /// Forwards nothing more over the present connections, and leaves them open. Further ones work.
    pub(crate) fn silence(&self) {
        self.control.silences.send_modify(|silences| *silences += 1);
    }

    /// Closes every connection. Withheld bytes are lost.
    pub(crate) fn cut(&self) {
        self.control.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn forward(mut client: TcpStream, control: Arc<Control>) {
    let (mut silences, mut cuts) = (control.silences.subscribe(), control.cuts.subscribe());
    let targets = control.targets.lock().expect("not poisoned").clone();
    if *control.mode.borrow() == Mode::Refuse {
        return;
    }
    let both_directions = async {
        let Some(mut server) = connect(&targets).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let requests = copy(from_client, to_server, control.mode.subscribe(), &[Mode::Stall]);
        let responses =
            copy(from_server, to_client, control.mode.subscribe(), &[Mode::Stall, Mode::Mute]);
        // When one side closes, the proxy closes both. Clients take that for the end of the
        // connection.
        tokio::select! {
            () = requests => {}
            () = responses => {}
            _ = silences.changed() => std::future::pending().await,
        }
    };
    tokio::select! {
        () = both_directions => {}
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

/// Copies bytes until a side closes, except while the mode is one of `withholding`.
async fn copy(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut mode: watch::Receiver<Mode>,
    withholding: &[Mode],
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if mode.wait_for(|mode| !withholding.contains(mode)).await.is_err() {
            return;
        }
        if *mode.borrow() == Mode::Slow {
            tokio::time::sleep(SLOW_MODE_DELAY).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
