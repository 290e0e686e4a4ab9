//! Secrets in files: read at the start and again when they change, and never shown.

use crate::support::{
    Process, Servers, Service, TempServer, World, program, replace_file, submitted, wait_for,
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::AUTHORIZATION},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};
use test_servers::Postgres;
use tokio::task::JoinSet;
use uuid::Uuid;

/// The variables whose values can be given in a file, by a variable with `_FILE` appended.
const SECRETS: [&str; 5] =
    ["DATABASE_URL", "AMQP_URL", "CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "ADMIN_TOKENS"];
const STATS: &str = "/api/v1/signups/customerio/stats";
/// Marks every secret of these tests.
const MARK: &str = "hush-hush-hush";

/// A folder with one file per secret.
struct SecretFiles {
    folder: tempfile::TempDir,
}

impl SecretFiles {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self, variable: &str) -> PathBuf {
        self.folder.path().join(variable.to_lowercase())
    }

    fn write(&self, variable: &str, content: &str) {
        replace_file(&self.path(variable), content);
    }

    /// Settings that name the files of `variables` and unset the variables.
    fn settings(&self, variables: &[&str]) -> Vec<(String, String)> {
        let in_file = |variable: &&str| {
            let path = self.path(variable).display().to_string();
            [((*variable).to_owned(), String::new()), (format!("{variable}_FILE"), path)]
        };
        variables.iter().flat_map(in_file).collect()
    }

    fn serve(&self, world: &World, variables: &[&str]) -> Service {
        let settings = self.settings(variables);
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        world.serve_with(&settings)
    }
}

/// Returns the status of a request with a token.
async fn status_with(world: &World, service: &Service, token: &str) -> u16 {
    let request = world.http().get(service.url(STATS)).bearer_auth(token);
    request.send().await.expect("the service answers").status().as_u16()
}

async fn wait_for_status(world: &World, service: &Service, token: &str, expected: u16) {
    let what = format!("status {expected}");
    wait_for(&what, || async {
        (status_with(world, service, token).await == expected).then_some(())
    })
    .await;
}

/// Everything about a process that other users of the machine may see, and its log.
fn visible(process: &Process) -> String {
    let read = |file: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{file}", process.id())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    [read("cmdline"), read("environ"), process.log()].concat()
}

#[tokio::test]
async fn every_secret_can_come_from_a_file_and_appears_nowhere() {
    let world = World::new().await.with("RUST_LOG", "debug");
    let user = format!("user-{}", world.vhost);
    world.permit(&user, MARK, [".*"; 3]).await;
    let files = SecretFiles::new();
    let token = format!("{MARK}-of-ann");
    let database_url =
        world.database_url.replace("postgres://postgres@", &format!("postgres://postgres:{MARK}@"));
    for (variable, secret) in [
        ("DATABASE_URL", database_url),
        ("AMQP_URL", world.amqp_url_of(&user, MARK)),
        ("CUSTOMERIO_SITE_ID", "site".to_owned()),
        ("CUSTOMERIO_API_KEY", MARK.to_owned()),
        ("ADMIN_TOKENS", format!("ann:operator:{token}")),
    ] {
        files.write(variable, &format!(" \n\t{secret}\r\n\n"));
    }
    let mut service = files.serve(&world, &SECRETS);
    service.wait_until_ready().await;
    complete_a_job(&world).await;
    assert_eq!(status_with(&world, &service, &token).await, 200);
    assert_eq!(status_with(&world, &service, "another-token-of-ann").await, 401);
    let seen = visible(&service.process);
    assert!(service.process.terminate().await.success());
    assert!(!seen.contains(MARK) && !service.process.log().contains(MARK), "{seen}");
    for subcommand in ["serve", "doctor", "migrate", "topology"] {
        let mut command = program(&files.settings(&SECRETS));
        let output = command.args([subcommand, "--help"]).output().expect("the program runs");
        assert!(!String::from_utf8_lossy(&output.stdout).contains(MARK), "{subcommand} --help");
    }
}

#[test]
fn a_secret_that_is_given_twice_exits_with_2() {
    let files = SecretFiles::new();
    for variable in SECRETS {
        files.write(variable, MARK);
        let mut settings = files.settings(&[variable]);
        settings.push((variable.to_owned(), format!("{MARK}-too")));
        let error = usage_error(&settings);
        assert!(error.contains(variable), "{error}");
        assert!(error.contains(&format!("{variable}_FILE")), "{error}");
        assert!(!error.contains(MARK), "{error}");
    }
}

#[test]
fn a_secret_file_that_cannot_be_read_exits_with_2_and_is_named() {
    let files = SecretFiles::new();
    for variable in SECRETS {
        let error = usage_error(&files.settings(&[variable]));
        let path = files.path(variable).display().to_string();
        assert!(error.contains(&path) && error.contains(variable), "{error}");
    }
}

/// Runs `serve`, which must end with exit code 2. Returns what it printed.
fn usage_error(settings: &[(String, String)]) -> String {
    let output = program(settings).arg("serve").output().expect("the program runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_of_the_database_serves_new_connections() {
    let postgres = TempServer::<Postgres>::started();
    let servers = Servers { database_url: postgres.url(), ..Servers::shared() };
    let world = World::on(servers).await;
    world.execute("CREATE ROLE sync LOGIN SUPERUSER PASSWORD 'first-password'").await;
    tokio::task::block_in_place(|| {
        postgres.authenticate("host all sync 127.0.0.1/32 scram-sha-256").expect("it is running");
    });
    let files = SecretFiles::new();
    let url_with = |password: &str| {
        world.database_url.replace("postgres://postgres@", &format!("postgres://sync:{password}@"))
    };
    files.write("DATABASE_URL", &url_with("first-password"));
    let service = files.serve(&world, &["DATABASE_URL"]);
    service.wait_until_ready().await;

    world.execute("ALTER ROLE sync PASSWORD 'second-password'").await;
    complete_a_job(&world).await;
    assert_eq!(service.get("/readyz").await.expect("an answer").0, 200, "connections stay");
    files.write("DATABASE_URL", &url_with("second-password"));
    world.end_sessions().await;
    complete_a_job(&world).await;
    service.wait_until_ready().await;
}

#[tokio::test]
async fn a_new_user_of_the_broker_serves_new_connections() {
    let world = World::new().await;
    let files = SecretFiles::new();
    let users = ["first", "second"].map(|name| format!("{name}-{}", world.vhost));
    for user in &users {
        world.permit(user, MARK, [".*"; 3]).await;
    }
    files.write("AMQP_URL", &world.amqp_url_of(&users[0], MARK));
    let service = files.serve(&world, &["AMQP_URL"]);
    service.wait_until_ready().await;
    files.write("AMQP_URL", &world.amqp_url_of(&users[1], MARK));
    // RabbitMQ ends the connections of a user that is deleted.
    let url = format!("{}/api/users/{}", world.management_url, users[0]);
    let deleted = world.http().delete(url).send().await.expect("the management API answers");
    assert!(deleted.status().is_success(), "{}", deleted.status());
    complete_a_job(&world).await;
    service.wait_until_ready().await;
}

/// Customer.io with a workspace whose keys can be changed. It refuses other keys, and forwards the
/// calls to the simulator.
struct Workspace {
    addr: SocketAddr,
    keys: Arc<Mutex<Keys>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Keys {
    accepted: Vec<&'static str>,
    /// The keys of all calls so far.
    tried: BTreeSet<String>,
}

#[derive(Clone)]
struct WorkspaceState {
    simulator: SocketAddr,
    keys: Arc<Mutex<Keys>>,
    http: reqwest::Client,
}

impl Workspace {
    async fn start(world: &World) -> Self {
        let keys = Arc::<Mutex<Keys>>::default();
        let (simulator, http) = (world.simulator.addr(), world.http().clone());
        let state = WorkspaceState { simulator, keys: keys.clone(), http };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let router = Router::new().fallback(forward).with_state(state);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, router).await.expect("it serves until the test ends");
        });
        Self { addr, keys, _tasks: tasks }
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().expect("no test panics while it has the lock")
    }

    async fn wait_until_tried(&self, key: &str) {
        wait_for("a call with another key", || async {
            self.keys().tried.contains(key).then_some(())
        })
        .await;
    }
}

async fn forward(
    State(state): State<WorkspaceState>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let key = key_of(&headers).unwrap_or_default();
    let is_accepted = {
        let mut keys = state.keys.lock().expect("no test panics while it has the lock");
        keys.tried.insert(key.clone());
        keys.accepted.contains(&key.as_str())
    };
    if !is_accepted {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let request = state.http.request(method, format!("http://{}{uri}", state.simulator));
    let response = request.headers(headers).body(body).send().await.expect("it answers");
    (response.status(), response.bytes().await.expect("a body")).into_response()
}

/// The key in the basic authentication of a call.
fn key_of(headers: &HeaderMap) -> Option<String> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    Some(text.split_once(':')?.1.to_owned())
}

#[tokio::test]
async fn a_new_api_key_is_used_once_it_is_accepted() {
    let world = World::new().await;
    let workspace = Workspace::start(&world).await;
    let world = world.with("CUSTOMERIO_TRACK_URL", &format!("http://{}", workspace.addr));
    let files = SecretFiles::new();
    workspace.keys().accepted = vec!["first-key"];
    files.write("CUSTOMERIO_API_KEY", "first-key\n");
    let service = files.serve(&world, &["CUSTOMERIO_API_KEY"]);
    service.wait_until_ready().await;
    complete_a_job(&world).await;

    // A key that is refused does not replace the one in use.
    files.write("CUSTOMERIO_API_KEY", "mistyped-key\n");
    workspace.wait_until_tried("mistyped-key").await;
    complete_a_job(&world).await;

    workspace.keys().accepted = vec!["first-key", "second-key"];
    files.write("CUSTOMERIO_API_KEY", "second-key\n");
    workspace.wait_until_tried("second-key").await;
    complete_a_job(&world).await;
    workspace.keys().accepted = vec!["second-key"];
    complete_a_job(&world).await;
    service.wait_until_ready().await;
    let failed = "SELECT count(*) FROM sync_attempts WHERE error_type IS NOT NULL";
    assert_eq!(world.count(failed).await, 0, "no job was risked");
}

async fn complete_a_job(world: &World) {
    let signup = Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;
}

#[tokio::test]
async fn a_token_that_leaves_the_file_loses_access() {
    let world = World::new().await;
    let files = SecretFiles::new();
    let (ann, ben) = ("first-token-of-ann", "first-token-of-ben");
    files.write("ADMIN_TOKENS", &format!("ann:operator:{ann},ben:viewer:{ben}"));
    let service = files.serve(&world, &["ADMIN_TOKENS"]);
    service.wait_until_ready().await;
    for token in [ann, ben] {
        assert_eq!(status_with(&world, &service, token).await, 200);
    }
    let session = log_in(&service, ben).await;
    assert_eq!(status_of_session(&world, &service, &session).await, 200);

    files.write("ADMIN_TOKENS", &format!("ann:operator:{ann}"));
    wait_for_status(&world, &service, ben, 401).await;
    assert_eq!(status_of_session(&world, &service, &session).await, 401, "the session ended");
    assert_eq!(status_with(&world, &service, ann).await, 200);

    let path = files.path("ADMIN_TOKENS");
    a_bad_list_changes_nothing(&world, &service, &path, ann).await;
    files.write("ADMIN_TOKENS", &format!("eve:viewer:{ben}"));
    wait_for_status(&world, &service, ann, 401).await;
    assert_eq!(status_with(&world, &service, ben).await, 200);
}

/// A list that can't be parsed, or that is missing, is logged, and the last one stays valid.
async fn a_bad_list_changes_nothing(world: &World, service: &Service, path: &Path, token: &str) {
    replace_file(path, "ann:owner:a-token-with-an-unknown-role");
    service.process.wait_for_line("http.admin_tokens").await;
    assert_eq!(status_with(world, service, token).await, 200);
    std::fs::remove_file(path).expect("removed");
    service.process.wait_for_line(&path.display().to_string()).await;
    assert_eq!(status_with(world, service, token).await, 200);
    let log = service.process.log();
    assert!(!log.contains("a-token-with") && !log.contains(token), "{log}");
}

/// Logs in as a browser does. Returns the session's cookie.
async fn log_in(service: &Service, token: &str) -> String {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let request = client
        .expect("a client")
        .post(service.url("/session"))
        .header("origin", service.url(""))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("token={token}"));
    let response = request.send().await.expect("the service answers");
    let cookie = response.headers()["set-cookie"].to_str().expect("text");
    cookie.split(';').next().expect("a pair").to_owned()
}

async fn status_of_session(world: &World, service: &Service, session: &str) -> u16 {
    let request = world.http().get(service.url(STATS)).header("cookie", session);
    request.send().await.expect("the service answers").status().as_u16()
}
