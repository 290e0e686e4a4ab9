//! An HTTPS front for a server that speaks plain HTTP.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::certificates::CertificateFiles;

/// Ends TLS and forwards the bytes, until it is dropped.
pub(crate) struct HttpsFront {
    addr: SocketAddr,
    acceptor: watch::Sender<TlsAcceptor>,
    _tasks: JoinSet<()>,
}

impl HttpsFront {
    /// Starts a front for the server at `target`.
    pub(crate) async fn start(target: SocketAddr, files: &CertificateFiles) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let acceptor = watch::Sender::new(acceptor(files));
        let current = acceptor.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((client, _)) = listener.accept().await {
                    connections.spawn(forward(client, target, current.clone()));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, acceptor, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.addr)
    }

    /// Uses another certificate from now on, and ends every connection.
    pub(crate) fn replace_certificate(&self, files: &CertificateFiles) {
        self.acceptor.send_replace(acceptor(files));
    }
}

async fn forward(client: TcpStream, target: SocketAddr, mut current: watch::Receiver<TlsAcceptor>) {
    let acceptor = current.borrow_and_update().clone();
    let both_directions = async {
        let mut client = acceptor.accept(client).await.ok()?;
        let mut server = TcpStream::connect(target).await.ok()?;
        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
    };
    tokio::select! {
        _ = both_directions => {}
        _ = current.changed() => {}
    }
}

fn acceptor(files: &CertificateFiles) -> TlsAcceptor {
    let chain = CertificateDer::pem_file_iter(&files.certificate).expect("the file is there");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports them")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("the key belongs to the certificate");
    TlsAcceptor::from(Arc::new(config))
}
