//! The life of a release, by the real Helm: install, test, upgrade with a migration, rollback,
//! uninstall.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use serde_json::Value;
use test_servers::previous_program;

use crate::{
    cluster::Cluster,
    helm::{Helm, chart, values_file},
    objects::items,
    support::{World, wait_for},
    tools::{run, succeed},
};

/// An image that runs the previous release, and one that runs this one.
const PREVIOUS: &str = "customerio-sync:previous";
const CURRENT: &str = "customerio-sync:current";

/// The programs of the images.
fn programs() -> BTreeMap<String, PathBuf> {
    let current = (CURRENT.to_owned(), env!("CARGO_BIN_EXE_customerio-sync").into());
    let previous = previous_program().map(|path| (PREVIOUS.to_owned(), path));
    [current].into_iter().chain(previous).collect()
}

/// A cluster with the Secret of a world, and the Helm that works on it.
struct Installation {
    cluster: Cluster,
    helm: Helm,
    kubeconfig: tempfile::NamedTempFile,
    /// Of the releases. The typed clients of the other drivers speak Protocol Buffers.
    storage: String,
}

impl Installation {
    async fn new(helm: Helm, world: &World) -> Self {
        let cluster = Cluster::start(programs()).await;
        cluster.create_secret(
            "customerio-sync",
            &[
                ("DATABASE_URL", &world.database_url),
                ("AMQP_URL", &world.amqp_url),
                ("CUSTOMERIO_SITE_ID", "site"),
                ("CUSTOMERIO_API_KEY", "key"),
                ("ADMIN_TOKENS", "ann:operator:0123456789abcdef"),
            ],
        );
        let storage = format!("helm_{}", world.vhost);
        world.execute(&format!("CREATE DATABASE {storage}")).await;
        let (server, _) = world.database_url.rsplit_once('/').expect("a URL with a database");
        let storage = format!("{server}/{storage}?sslmode=disable");
        Self { kubeconfig: cluster.kubeconfig(), cluster, helm, storage }
    }

    fn helm(&self, arguments: &[&str]) -> Command {
        let mut command = self.helm.command();
        command.args(arguments).env("KUBECONFIG", self.kubeconfig.path());
        command.env("HELM_DRIVER", "sql").env("HELM_DRIVER_SQL_CONNECTION_STRING", &self.storage);
        command
    }

    /// Runs a command of Helm that must succeed. It blocks this thread, not the server.
    async fn succeed(&self, arguments: &[&str]) -> String {
        let mut command = self.helm(arguments);
        tokio::task::block_in_place(|| succeed(&mut command))
    }

    fn deployment(&self) -> Value {
        self.cluster.objects("Deployment")["prod-customerio-sync"].clone()
    }

    fn image(&self) -> Value {
        self.deployment()["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    }
}

async fn schema(world: &World) -> i64 {
    world.count("SELECT max(version) FROM _sqlx_migrations").await
}

async fn a_release_lives(helm: Helm) {
    if previous_program().is_none() {
        println!("PREVIOUS_BINARY names no program; `./dev ops` builds it from the history");
        return;
    }
    // The Deployment runs no process, so the test starts the service that `doctor` looks for, with
    // the settings of the chart.
    let world = World::new().await.with("RETRY_DELAYS", "5s,25s,125s,625s,3125s");
    let installation = Installation::new(helm, &world).await;
    let chart = chart().display().to_string();
    let track_url = format!("http://{}", world.simulator.addr());
    let settings = format!("config: {{customerio: {{track_url: \"{track_url}\"}}}}\n");
    let values = |tag: &str| values_file(&format!("{settings}image: {{tag: {tag}}}\n"));
    let (previous, current) = (values("previous"), values("current"));
    let path = |file: &tempfile::NamedTempFile| file.path().display().to_string();
    // The wait of Helm 3 asks for Protocol Buffers as well. Everything is ready at once.
    let wait = if helm == Helm::V4 { vec!["--wait"] } else { vec![] };
    let change = async |command: &str, values: &tempfile::NamedTempFile| {
        let file = path(values);
        let arguments = [command, "prod", &chart, "--values", &file, "--timeout", "60s"];
        installation.succeed(&[&arguments[..], &wait].concat()).await
    };

    let notes = change("install", &previous).await;
    assert!(notes.contains("helm --namespace default test prod --logs"), "{notes}");
    assert!(notes.contains("Connections to PostgreSQL: up to 30, and 15 more"), "{notes}");
    let first = schema(&world).await;
    assert_eq!(installation.image(), PREVIOUS);
    assert!(installation.cluster.objects("Job").is_empty(), "the hook is deleted");

    change("upgrade", &current).await;
    assert!(schema(&world).await > first, "the upgrade migrated");
    assert_eq!(installation.image(), CURRENT);
    let service = world.serve();
    service.wait_until_ready().await;
    let tested = installation.succeed(&["test", "prod", "--logs", "--timeout", "60s"]).await;
    for check in ["schema", "broker", "topology", "credentials"] {
        assert!(tested.contains(&format!("ok    {check}: ")), "{check}: {tested}");
    }
    assert!(!tested.contains("FAIL"), "{tested}");

    let latest = schema(&world).await;
    installation.succeed(&[&["rollback", "prod", "1"][..], &wait].concat()).await;
    assert_eq!(installation.image(), PREVIOUS);
    assert_eq!(schema(&world).await, latest, "the schema stays");
    let history = installation.succeed(&["history", "prod", "--output", "json"]).await;
    let history: Value = serde_json::from_str(&history).expect("JSON");
    assert_eq!(items(&history).count(), 3);

    installation.succeed(&["uninstall", "prod"]).await;
    for kind in ["Deployment", "ConfigMap", "Service", "PodDisruptionBudget"] {
        wait_for(&format!("every {kind} to be gone"), || async {
            installation.cluster.objects(kind).is_empty().then_some(())
        })
        .await;
    }
    assert_eq!(installation.cluster.objects("Secret").len(), 1, "the Secret is not the chart's");
    let runs = installation.cluster.runs();
    let images: Vec<_> = runs.iter().map(|run| (run.image.as_str(), run.succeeded)).collect();
    assert_eq!(images, [(PREVIOUS, true), (CURRENT, true), (CURRENT, true)], "{runs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_3_installs_tests_upgrades_rolls_back_and_uninstalls() {
    a_release_lives(Helm::V3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_4_installs_tests_upgrades_rolls_back_and_uninstalls() {
    a_release_lives(Helm::V4).await;
}

/// Nothing of the release is changed when its migration fails, and the message leads to the cause.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_fails_stops_the_upgrade() {
    let world = World::new().await;
    let installation = Installation::new(Helm::V4, &world).await;
    let chart = chart().display().to_string();
    let good = values_file("image: {tag: current}\n");
    let arguments = |command, values: &tempfile::NamedTempFile| {
        let values = values.path().display().to_string();
        [command, "prod", chart.as_str(), "--values", &values].map(str::to_owned)
    };
    let as_texts =
        |arguments: &[String; 5]| installation.helm(&arguments.each_ref().map(String::as_str));
    tokio::task::block_in_place(|| succeed(&mut as_texts(&arguments("install", &good))));
    let before = installation.deployment();
    let bad = values_file(
        "image: {tag: current}\nreplicaCount: 5\n\
         migrations: {databaseUrl: {existingSecret: owner, key: uri}}\n",
    );
    let mut upgrade = as_texts(&arguments("upgrade", &bad));
    let printed = tokio::task::block_in_place(|| run(&mut upgrade));
    assert!(!printed.succeeded, "{}", printed.stdout);
    assert!(printed.stderr.contains("pre-upgrade hooks failed"), "{}", printed.stderr);
    assert_eq!(installation.deployment()["spec"], before["spec"]);
    let runs = installation.cluster.runs();
    assert_eq!(runs.last().expect("a run").output, "secret \"owner\" not found");
    assert_eq!(installation.cluster.objects("Job").len(), 1, "the failed Job stays to be read");
}
