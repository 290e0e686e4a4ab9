//! TLS to RabbitMQ, PostgreSQL and Customer.io: certificate authorities of one's own, what is wrong
//! with a certificate, client certificates, and new files without a restart.

use crate::support::{
    Authority, CertificateFiles, HttpsFront, SERVER_NAMES, Servers, Service, TempServer, World,
    replace_file, submitted, wait_for,
};
use std::path::{Path, PathBuf};
use test_servers::{Postgres, RabbitMq, TlsFiles};
use uuid::Uuid;

/// The role that PostgreSQL knows by its certificate.
const CERTIFICATE_ROLE: &str = "sync_by_certificate";

/// A RabbitMQ and a PostgreSQL that also accept TLS connections, with files in one folder.
struct TlsServers {
    rabbitmq: TempServer<RabbitMq>,
    postgres: TempServer<Postgres>,
    folder: tempfile::TempDir,
    /// The authority whose client certificates the servers accept.
    client_authority: PathBuf,
}

impl TlsServers {
    fn start(authority: &Authority, is_certificate_required: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let client_authority = folder.path().join("client-authority.pem");
        replace_file(&client_authority, authority.pem());
        let files = authority.issue(folder.path(), "server", &SERVER_NAMES);
        let (rabbitmq, postgres) = (TempServer::<RabbitMq>::new(), TempServer::<Postgres>::new());
        let tls = tls_files(&files, &client_authority);
        rabbitmq.serve_tls(tls, is_certificate_required).expect("the folder is ours");
        rabbitmq.start();
        postgres.start();
        postgres.serve_tls(tls).expect("it is running");
        Self { rabbitmq, postgres, folder, client_authority }
    }

    /// Replaces the certificate of both servers, and ends the connections to RabbitMQ.
    fn replace_certificate(&self, files: &CertificateFiles) {
        for (file, extension) in [(&files.certificate, "pem"), (&files.key, "key")] {
            let content = std::fs::read_to_string(file).expect("the file is there");
            replace_file(&self.folder.path().join("server").with_extension(extension), &content);
        }
        self.reload();
    }

    /// Replaces the authority whose client certificates both servers accept.
    fn replace_client_authority(&self, authority: &Authority) {
        replace_file(&self.client_authority, authority.pem());
        self.reload();
    }

    fn reload(&self) {
        let files = CertificateFiles {
            certificate: self.folder.path().join("server.pem"),
            key: self.folder.path().join("server.key"),
        };
        let tls = tls_files(&files, &self.client_authority);
        tokio::task::block_in_place(|| {
            self.postgres.serve_tls(tls).expect("it is running");
            self.rabbitmq.reload_certificates().expect("it is running");
        });
    }

    /// A world on these servers. The test itself connects without TLS.
    async fn world(&self) -> World {
        World::on(Servers {
            database_url: self.postgres.url(),
            ..Servers::with_rabbitmq(&self.rabbitmq)
        })
        .await
    }

    fn amqps_url(&self, world: &World) -> String {
        let port = self.rabbitmq.tls_port().expect("it was started");
        format!("amqps://guest:guest@127.0.0.1:{port}/{}", world.vhost)
    }
}

fn tls_files<'a>(files: &'a CertificateFiles, client_authority: &'a Path) -> TlsFiles<'a> {
    TlsFiles { certificate: &files.certificate, key: &files.key, client_authority }
}

/// The database of a world, over TLS.
fn verified(database_url: &str) -> String {
    format!("{database_url}?sslmode=verify-full")
}

/// Settings of a service that trusts the authorities in `ca_file`.
fn settings(
    servers: &TlsServers,
    world: &World,
    https: &HttpsFront,
    ca_file: &Path,
) -> Vec<(&'static str, String)> {
    vec![
        ("AMQP_URL", servers.amqps_url(world)),
        ("DATABASE_URL", verified(&world.database_url)),
        ("CUSTOMERIO_TRACK_URL", https.url()),
        ("CUSTOMERIO_SYNC__TLS__CA_FILE", ca_file.display().to_string()),
    ]
}

async fn wait_for_completed(world: &World, count: i64) {
    wait_for(&format!("{count} completed jobs"), || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn own_authorities_are_trusted_and_bad_certificates_named() {
    let authority = Authority::new("first authority");
    let servers = TlsServers::start(&authority, false);
    an_event_flows_over_tls(&servers, &authority).await;
    another_authority_is_named(&servers).await;
    let folder = servers.folder.path();
    servers.replace_certificate(&authority.issue(folder, "other", &["other.example"]));
    a_bad_certificate_is_named(&servers, &authority, "host name").await;
    servers.replace_certificate(&authority.issue_expired(folder, "expired"));
    a_bad_certificate_is_named(&servers, &authority, "expired").await;
    servers.replace_certificate(&authority.issue(folder, "right", &SERVER_NAMES));
    a_new_authority_is_trusted_without_a_restart(&servers, &authority).await;
}

async fn an_event_flows_over_tls(servers: &TlsServers, authority: &Authority) {
    let world = servers.world().await;
    let folder = servers.folder.path();
    let files = authority.issue(folder, "front", &SERVER_NAMES);
    let https = HttpsFront::start(world.simulator.addr(), &files).await;
    let ca_file = folder.join("trusted.pem");
    replace_file(&ca_file, authority.pem());
    let mut service = world.serve_with(&settings(servers, &world, &https, &ca_file));
    service.wait_until_ready().await;
    world.submit(&submitted(Uuid::new_v4())).await;
    wait_for_completed(&world, 1).await;
    assert_eq!(world.events().await.len(), 1);
    assert!(service.process.terminate().await.success());
}

/// With a file that lacks the authority, RabbitMQ and PostgreSQL are not used, and no call reaches
/// Customer.io. When the file has it, everything that waited is done.
async fn another_authority_is_named(servers: &TlsServers) {
    let world = servers.world().await;
    let folder = servers.folder.path();
    let stranger = Authority::new("another authority");
    let ca_file = folder.join("stranger.pem");
    replace_file(&ca_file, stranger.pem());
    let ca_setting = ("CUSTOMERIO_SYNC__TLS__CA_FILE", ca_file.display().to_string());

    let settings = [("AMQP_URL", servers.amqps_url(&world)), ca_setting.clone()];
    let service = world.serve_with(&settings);
    service.wait_for_reason(&["broker: ", "tls.ca_file"]).await;
    drop(service);
    let settings = [("DATABASE_URL", verified(&world.database_url)), ca_setting.clone()];
    let service = world.serve_with(&settings);
    service.wait_for_reason(&["database: ", "tls.ca_file"]).await;
    drop(service);

    let known = Authority::new("authority of Customer.io");
    let files = known.issue(folder, "front", &SERVER_NAMES);
    let https = HttpsFront::start(world.simulator.addr(), &files).await;
    // A ladder that is longer than the service takes to read the file again.
    let delays = ("RETRY_DELAYS", ["5s"; 8].join(","));
    let settings = [("CUSTOMERIO_TRACK_URL", https.url()), delays, ca_setting];
    let service = world.serve_with(&settings);
    service.wait_until_ready().await;
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    let job = world.wait_for_retry(signup, "initial").await;
    assert_eq!(job["error_type"], "network");
    assert_eq!(world.calls().await.len(), 0, "nothing was sent to a stranger");
    replace_file(&ca_file, &format!("{}{}", stranger.pem(), known.pem()));
    world.wait_for_job(signup, "initial", "completed").await;
}

/// The certificates of both servers have the same defect, which the reasons name. Events wait.
async fn a_bad_certificate_is_named(servers: &TlsServers, authority: &Authority, defect: &str) {
    let world = servers.world().await;
    world.start().await.stop().await;
    world.submit(&submitted(Uuid::new_v4())).await;
    let ca_file = servers.folder.path().join("trusted.pem");
    replace_file(&ca_file, authority.pem());
    let ca_setting = ("CUSTOMERIO_SYNC__TLS__CA_FILE", ca_file.display().to_string());
    for (name, setting) in [
        ("broker: ", ("AMQP_URL", servers.amqps_url(&world))),
        ("database: ", ("DATABASE_URL", verified(&world.database_url))),
    ] {
        let service = world.serve_with(&[setting, ca_setting.clone()]);
        let reason = service.wait_for_reason(&[name, defect]).await;
        assert!(!reason.contains("guest:guest"), "{reason}");
    }
    // The event is still there.
    world.wait_for_depth("customerio-sync.signup-submitted", 1).await;
}

/// The servers present certificates of a new authority. The connections are back when it is in the
/// file.
async fn a_new_authority_is_trusted_without_a_restart(servers: &TlsServers, old: &Authority) {
    let world = servers.world().await;
    let folder = servers.folder.path();
    let https =
        HttpsFront::start(world.simulator.addr(), &old.issue(folder, "front", &SERVER_NAMES)).await;
    let ca_file = folder.join("renewed.pem");
    replace_file(&ca_file, old.pem());
    let mut settings = settings(servers, &world, &https, &ca_file);
    // A ladder that is longer than the service takes to read the file again for calls.
    settings.push(("RETRY_DELAYS", ["5s"; 8].join(",")));
    let service = world.serve_with(&settings);
    service.wait_until_ready().await;

    let new = Authority::new("renewed authority");
    let renewed = new.issue(folder, "renewed", &SERVER_NAMES);
    https.replace_certificate(&renewed);
    servers.replace_certificate(&renewed);
    world.end_sessions().await;
    service.wait_for_reason(&["tls.ca_file"]).await;
    world.submit(&submitted(Uuid::new_v4())).await;
    replace_file(&ca_file, new.pem());
    service.wait_until_ready().await;
    wait_for_completed(&world, 1).await;
    assert_eq!(world.events().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_are_presented_and_renewed() {
    let authority = Authority::new("authority of servers and clients");
    let servers = TlsServers::start(&authority, true);
    let lines = format!("hostssl all {CERTIFICATE_ROLE} 127.0.0.1/32 cert");
    tokio::task::block_in_place(|| servers.postgres.authenticate(&lines)).expect("it is running");
    let world = servers.world().await;
    world.execute(&format!("CREATE ROLE {CERTIFICATE_ROLE} LOGIN SUPERUSER")).await;
    let folder = servers.folder.path();
    let ca_file = folder.join("trusted.pem");
    replace_file(&ca_file, authority.pem());
    let ca_setting = ("CUSTOMERIO_SYNC__TLS__CA_FILE", ca_file.display().to_string());
    let by_certificate = verified(&world.database_url)
        .replace("postgres://postgres@", &format!("postgres://{CERTIFICATE_ROLE}@"));

    for (name, key, setting) in [
        ("broker: ", "broker.client_certificate", ("AMQP_URL", servers.amqps_url(&world))),
        ("database: ", "database.client_certificate", ("DATABASE_URL", by_certificate.clone())),
    ] {
        let service = world.serve_with(&[setting, ca_setting.clone()]);
        service.wait_for_reason(&[name, key]).await;
    }

    let client = authority.issue_client(folder, "client", CERTIFICATE_ROLE);
    let (certificate, key) = (client.certificate.display(), client.key.display());
    let service = world.serve_with(&[
        ca_setting,
        ("AMQP_URL", servers.amqps_url(&world)),
        ("DATABASE_URL", by_certificate),
        ("CUSTOMERIO_SYNC__BROKER__CLIENT_CERTIFICATE", certificate.to_string()),
        ("CUSTOMERIO_SYNC__BROKER__CLIENT_KEY", key.to_string()),
        ("CUSTOMERIO_SYNC__DATABASE__CLIENT_CERTIFICATE", certificate.to_string()),
        ("CUSTOMERIO_SYNC__DATABASE__CLIENT_KEY", key.to_string()),
    ]);
    service.wait_until_ready().await;
    world.submit(&submitted(Uuid::new_v4())).await;
    wait_for_completed(&world, 1).await;
    a_renewed_client_certificate_is_presented(&servers, &world, &service).await;
}

async fn a_renewed_client_certificate_is_presented(
    servers: &TlsServers,
    world: &World,
    service: &Service,
) {
    let new = Authority::new("renewed authority of clients");
    servers.replace_client_authority(&new);
    world.end_sessions().await;
    wait_for("the service to be refused", || async {
        service.get("/readyz").await.filter(|(status, _)| *status == 503)
    })
    .await;
    world.submit(&submitted(Uuid::new_v4())).await;
    // The same paths as before. For a moment certificate and key do not belong together.
    new.issue_client(servers.folder.path(), "client", CERTIFICATE_ROLE);
    service.wait_until_ready().await;
    wait_for_completed(world, 2).await;
}
