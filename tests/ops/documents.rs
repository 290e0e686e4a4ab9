//! The command blocks that the documents mark with `<!-- tested -->` work as they stand, one after
//! the other.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use sqlx::{Connection, PgConnection};

use crate::{
    cluster::Cluster,
    support::{World, root, submitted},
    tools::{limited, succeed, tools},
};

/// Precedes a block that the test runs.
const MARK: &str = "<!-- tested -->\n```sh\n";

/// The marked blocks of a document, in order.
fn blocks(document: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(document)).expect("the document is there");
    let blocks = text.split(MARK).skip(1);
    blocks.map(|rest| rest.split("```").next().expect("a block").to_owned()).collect()
}

/// Writes a program that starts another one, with a variable.
fn wrapper(path: &Path, program: &str, variable: &str, value: &str) {
    let script = format!("#!/bin/sh\nexport {variable}='{value}'\nexec {program} \"$@\"\n");
    fs::write(path, script).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// The environment in which a reader would run the blocks.
struct Shell {
    folder: tempfile::TempDir,
    environment: Vec<(&'static str, String)>,
}

impl Shell {
    fn run(&self, block: &str) {
        let mut shell: Command = limited("bash");
        shell.args(["-euo", "pipefail", "-c", block]).current_dir(self.folder.path());
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        tokio::task::block_in_place(|| succeed(&mut shell));
    }
}

async fn create_database(world: &World, name: &str) -> String {
    world.execute(&format!("CREATE DATABASE {name}")).await;
    let (server, _) = world.database_url.rsplit_once('/').expect("a URL with a database");
    format!("{server}/{name}")
}

async fn jobs(url: &str) -> i64 {
    let mut connection = PgConnection::connect(url).await.expect("PostgreSQL answers");
    let count = sqlx::query_scalar("SELECT count(*) FROM signup_customerio_sync_jobs");
    count.fetch_one(&mut connection).await.expect("counted")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_marked_commands_of_the_documents_work() {
    let blocks = [blocks("docs/observability.md"), blocks("docs/operations.md")].concat();
    assert!(blocks.len() >= 6, "{blocks:?}");
    let world = World::new().await.with("RETRY_DELAYS", "5s,25s,125s,625s,3125s");
    // `doctor` in the cluster checks what a service has declared. It must not call Customer.io.
    let service = world.serve();
    service.wait_until_ready().await;
    let signup = uuid::Uuid::new_v4();
    world.submit(&submitted(signup)).await;
    world.wait_for_job(signup, "initial", "completed").await;

    let folder = tempfile::tempdir().expect("a temporary folder");
    symlink(root().join("helm"), folder.path().join("helm")).expect("linked");
    let program = folder.path().join("program");
    let simulator = format!("http://{}", world.simulator.addr());
    let built = env!("CARGO_BIN_EXE_customerio-sync");
    wrapper(&program, built, "CUSTOMERIO_TRACK_URL", &simulator);
    let image = format!("registry.example.com/customerio-sync:{}", env!("CARGO_PKG_VERSION"));
    let cluster = Cluster::start(BTreeMap::from([(image, program)])).await;
    let kubeconfig = cluster.kubeconfig();
    let releases = create_database(&world, &format!("helm_{}", world.vhost)).await;
    let restored = create_database(&world, &format!("restored_{}", world.vhost)).await;
    let path = [
        tools().join("helm4/helm"),
        tools().join("helm4/kubectl"),
        Path::new(built).parent().expect("a folder").to_owned(),
    ];
    let path = path.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(":");
    let environment = vec![
        ("PATH", format!("{path}:{}", std::env::var("PATH").expect("a path"))),
        ("KUBECONFIG", kubeconfig.path().display().to_string()),
        ("HELM_DRIVER", "sql".to_owned()),
        ("HELM_DRIVER_SQL_CONNECTION_STRING", format!("{releases}?sslmode=disable")),
        ("DATABASE_URL", world.database_url.clone()),
        ("RESTORED_DATABASE_URL", restored.clone()),
        ("AMQP_URL", world.amqp_url.clone()),
        ("CUSTOMERIO_SITE_ID", "site".to_owned()),
        ("CUSTOMERIO_API_KEY", "key".to_owned()),
    ];
    let shell = Shell { folder, environment };
    for block in &blocks {
        shell.run(block);
    }
    assert_eq!(cluster.objects("Secret").len(), 1);
    assert!(cluster.objects("Deployment").contains_key("customerio-sync"));
    assert!(cluster.runs().iter().all(|run| run.succeeded), "{:?}", cluster.runs());
    assert_eq!(jobs(&restored).await, jobs(&world.database_url).await);
}
