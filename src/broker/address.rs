//! Where RabbitMQ is and how to log in, shared by all connections, and the TCP or TLS connection to
//! it.
//!
//! lapin's own parser reads an IPv6 address as `localhost`, and its own connection attempt waits
//! for an address that does not answer until the whole attempt fails. So both are done here.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::{AsyncRead, AsyncWrite};
use lapin::{
    ConnectionProperties,
    runtime::default_runtime,
    tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use url::{Host, Url};

use super::{
    Config, Error,
    repair::{RepairedStream, repairing_runtime},
    version::server_version,
};
use crate::runtime::tls;

/// Maximum time to wait for an address, if the host has others.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum size of a frame, in bytes. It is RabbitMQ's default.
pub(super) const FRAME_BYTES_MAX: u32 = 131_072;
const EXPECTED: &str = "expected amqp://user:password@host:5672/vhost, or amqps://";

/// The server, the credentials and the certificates.
pub struct Address {
    /// The URL in use. Every new connection reads it.
    uri: RwLock<Arc<AMQPUri>>,
    heartbeat: u16,
    connect_timeout: Duration,
    tls: tls::Config,
    client_certificate: PathBuf,
    client_key: PathBuf,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL has a password.
        f.debug_struct("Address").finish_non_exhaustive()
    }
}

impl Address {
    /// Fails if the URL is malformed.
    pub fn new(config: &Config, tls: &tls::Config) -> Result<Arc<Self>, Error> {
        // `config` limits it to the range of AMQP.
        let heartbeat = u16::try_from(config.heartbeat.as_secs()).unwrap_or(u16::MAX);
        Ok(Arc::new(Self {
            uri: RwLock::new(Arc::new(parse_url(&config.url, heartbeat)?)),
            heartbeat,
            connect_timeout: config.connect_timeout,
            tls: tls.clone(),
            client_certificate: config.client_certificate.clone(),
            client_key: config.client_key.clone(),
        }))
    }

    /// Uses `url` for new connections, after RabbitMQ has accepted it once. Until then, the URL in
    /// use stays.
    pub async fn replace_url(&self, url: &SecretString) -> Result<(), Error> {
        let uri = Arc::new(parse_url(url, self.heartbeat)?);
        let connection = self.connect_to(&uri, "reload").await?;
        // It was opened only to test the credentials.
        let closed = connection.close(200, "done".into());
        let _ = timeout(self.connect_timeout, closed).await;
        *self.uri.write().unwrap_or_else(PoisonError::into_inner) = uri;
        Ok(())
    }

    /// Opens a connection, called `name` in the management UI.
    pub(super) async fn connect(&self, name: &str) -> Result<lapin::Connection, Error> {
        self.connect_to(&self.uri(), name).await
    }

    /// The version that the server sends before the login, if it sends one.
    pub(super) async fn version(&self) -> Option<String> {
        let uri = self.uri();
        let asking = async {
            let address = self.first_reachable(&uri).await.ok()?;
            server_version(self.open(&uri, address).await.ok()?).await
        };
        timeout(self.connect_timeout, asking).await.ok().flatten()
    }

    /// Opens a stream to one address of the server. The caller limits the time.
    async fn open(
        &self,
        uri: &AMQPUri,
        address: SocketAddr,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, Error> {
        let tls = self.tls_config(uri)?;
        let runtime = default_runtime().map_err(Error::Connect)?;
        let opening = async {
            let stream = AsyncTcpStream::connect(&runtime, address).await?;
            match uri.scheme {
                AMQPScheme::AMQP => Ok(stream),
                AMQPScheme::AMQPS => stream.into_tls(&uri.authority.host, tls.as_ref()).await,
            }
        };
        opening.await.map_err(|error: io::Error| Error::Connect(error.into()))
    }

    /// The URL in use.
    pub(super) fn uri(&self) -> Arc<AMQPUri> {
        self.uri.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    async fn connect_to(&self, uri: &AMQPUri, name: &str) -> Result<lapin::Connection, Error> {
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("customerio-sync {name}").into());
        let tls = self.tls_config(uri)?;
        let tcp = default_runtime().map_err(Error::Connect)?;
        let connecting = async {
            let address = self.first_reachable(uri).await?;
            let connecting = lapin::Connection::connector(
                uri.clone(),
                repairing_runtime(FRAME_BYTES_MAX as usize),
                async move |uri, _| {
                    let stream = AsyncTcpStream::connect(&tcp, address).await?;
                    let stream = match uri.scheme {
                        AMQPScheme::AMQP => stream,
                        AMQPScheme::AMQPS => {
                            stream.into_tls(&uri.authority.host, tls.as_ref()).await?
                        }
                    };
                    let repaired = RepairedStream::new(stream, FRAME_BYTES_MAX as usize);
                    Ok(AsyncTcpStream::Plain(repaired))
                },
                properties,
            );
            connecting.await.map_err(Error::Connect)
        };
        timeout(self.connect_timeout, connecting)
            .await
            .unwrap_or(Err(Error::ConnectTimeout(self.connect_timeout)))
    }

    /// The first address of the host at which RabbitMQ answers. If the host has only one, it is not
    /// asked first: RabbitMQ logs a client that leaves before its login.
    async fn first_reachable(&self, uri: &AMQPUri) -> Result<SocketAddr, Error> {
        let unreachable = |error: io::Error| Error::Connect(error.into());
        let AMQPAuthority { host, port, .. } = &uri.authority;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await.map_err(unreachable)?;
        let addresses: Vec<_> = found.collect();
        let Some((last, others)) = addresses.split_last() else {
            let nothing = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
            return Err(unreachable(nothing));
        };
        for address in others {
            let answering = async {
                let stream = self.open(uri, *address).await.ok()?;
                server_version(stream).await
            };
            if timeout(ADDRESS_TIMEOUT, answering).await.is_ok_and(|version| version.is_some()) {
                return Ok(*address);
            }
            tracing::debug!(%address, "RabbitMQ does not answer at this address of its host");
        }
        Ok(*last)
    }

    /// Reads the certificates, so that renewed ones apply.
    fn tls_config(&self, uri: &AMQPUri) -> Result<OwnedTLSConfig, Error> {
        if uri.scheme == AMQPScheme::AMQP {
            return Ok(OwnedTLSConfig::default());
        }
        let authorities = self.tls.authorities()?;
        let certificate = tls::read_optional(&self.client_certificate)?;
        let key = tls::read_optional(&self.client_key)?;
        Ok(OwnedTLSConfig {
            identity: certificate.zip(key).map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key }),
            cert_chain: authorities.map(|pem| String::from_utf8_lossy(&pem).into_owned()),
        })
    }
}

/// Describes what is wrong with the URL. The text contains no part of it: it has a password.
pub fn check_url(config: &Config) -> Result<(), String> {
    if config.url.expose_secret().is_empty() {
        return Ok(());
    }
    parse(&config.url).map(drop)
}

/// The virtual host of the URL; `/` if there is no URL.
pub fn vhost(config: &Config) -> Result<String, Error> {
    if config.url.expose_secret().is_empty() {
        return Ok("/".to_owned());
    }
    Ok(parse(&config.url).map_err(Error::Url)?.vhost)
}

fn parse_url(url: &SecretString, heartbeat: u16) -> Result<AMQPUri, Error> {
    let mut uri = parse(url).map_err(Error::Url)?;
    uri.query.heartbeat.get_or_insert(heartbeat);
    uri.query.frame_max = Some(FRAME_BYTES_MAX);
    Ok(uri)
}

/// Parses an AMQP URL (<https://www.rabbitmq.com/docs/uri-spec>).
fn parse(url: &SecretString) -> Result<AMQPUri, String> {
    let url = Url::parse(url.expose_secret().trim())
        .map_err(|error| format!("it can't be parsed ({error}); {EXPECTED}"))?;
    let scheme = match url.scheme() {
        "amqp" => AMQPScheme::AMQP,
        "amqps" => AMQPScheme::AMQPS,
        _ => return Err(format!("the scheme is neither amqp nor amqps; {EXPECTED}")),
    };
    let host = match url.host() {
        Some(Host::Domain(host)) => decode(host, "host")?,
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => return Err(format!("it has no host; {EXPECTED}")),
    };
    let vhost = match url.path() {
        "" => "/".to_owned(),
        "/" => {
            return Err(
                "the virtual host is empty; expected a name after the last slash, such as \
                /%2f for the default virtual host"
                    .to_owned(),
            );
        }
        path => decode(path.strip_prefix('/').unwrap_or(path), "virtual host")?,
    };
    let or_guest = |text: &str| if text.is_empty() { "guest".to_owned() } else { text.to_owned() };
    let userinfo = AMQPUserInfo {
        username: or_guest(&decode(url.username(), "user")?),
        password: or_guest(&decode(url.password().unwrap_or_default(), "password")?),
    };
    let port = url.port().unwrap_or_else(|| scheme.default_port());
    let authority = AMQPAuthority { userinfo, host, port };
    Ok(AMQPUri { scheme, authority, vhost, query: query(&url)? })
}

fn decode(text: &str, part: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("the {part} is not UTF-8 when it is decoded; {EXPECTED}"))
}

/// The parameters that RabbitMQ's clients share
/// (<https://www.rabbitmq.com/docs/uri-query-parameters>). Others are ignored.
fn query(url: &Url) -> Result<AMQPQueryString, String> {
    let mut query = AMQPQueryString::default();
    for (name, value) in url.query_pairs() {
        let wrong = || format!("the parameter {name} is malformed; expected a number");
        match name.as_ref() {
            "heartbeat" => query.heartbeat = Some(value.parse().map_err(|_| wrong())?),
            "channel_max" => query.channel_max = Some(value.parse().map_err(|_| wrong())?),
            "frame_max" => query.frame_max = Some(value.parse().map_err(|_| wrong())?),
            "auth_mechanism" => {
                let mechanism = value.parse();
                query.auth_mechanism = Some(mechanism.map_err(|_| {
                    "the parameter auth_mechanism is unknown; expected plain or external".to_owned()
                })?);
            }
            _ => {}
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> AMQPUri {
        parse(&url.into()).expect(url)
    }

    #[test]
    fn an_ipv6_address_is_the_host() {
        let uri = parsed("amqp://u:p@[::1]:5673/%2f");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("::1", 5673));
        assert_eq!(parsed("amqps://u:p@127.0.0.1/v").authority.host, "127.0.0.1");
        assert_eq!(parsed("amqps://u:p@rabbit.example/v").authority.port, 5671);
    }

    #[test]
    fn user_password_and_virtual_host_are_decoded() {
        let uri = parsed("amqp://a%40b:p%2Fw@h/team%2Fsync?heartbeat=7&connection_timeout=x");
        assert_eq!(uri.authority.userinfo.username, "a@b");
        assert_eq!(uri.authority.userinfo.password, "p/w");
        assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("team/sync", Some(7)));
        assert_eq!(parsed("amqp://h").vhost, "/", "without a slash, the default virtual host");
        assert_eq!(parsed("amqp://h").authority.userinfo.username, "guest");
    }

    #[test]
    fn the_error_of_a_malformed_url_contains_no_part_of_it() {
        for (url, expected) in [
            ("amqp:user:s3cret@host", "no host"),
            ("user:s3cret@host/v", "scheme"),
            ("https://user:s3cret@host/v", "scheme"),
            ("amqp://user:s3cret@host:port/v", "port"),
            ("amqp://user:s3cret@host/", "/%2f"),
            ("amqp://user:%ffs3cret@host/v", "password"),
            ("amqp://user:s3cret@host/v?heartbeat=s3cret", "heartbeat"),
            ("amqp://user:s3cret@ho st/v", "parsed"),
            ("s3cret", "parsed"),
        ] {
            let problem = parse(&url.into()).expect_err(url);
            assert!(problem.contains(expected) && !problem.contains("s3cret"), "{problem}");
        }
    }
}
