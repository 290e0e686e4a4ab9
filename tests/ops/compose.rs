//! The compose file starts the whole stack, on a real Docker engine with stand-ins for the images
//! of other projects.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    support::{program, root, wait_for},
    tools::{limited, run, succeed, tools},
};

/// A private Docker engine.
struct Engine {
    folder: PathBuf,
}

impl Engine {
    /// Starts an engine with the images of the compose file.
    fn with_images() -> Self {
        let folder = tools().join(format!("docker-{}", uuid::Uuid::new_v4().simple()));
        let engine = Self { folder };
        succeed(&mut engine.script("start"));
        let standins = tools().join("standins.tar");
        if !standins.exists() {
            let new = engine.folder.join("standins.tar");
            succeed(engine.standins().arg("root").arg(&new));
            std::fs::rename(new, &standins).expect("renamed");
        }
        succeed(engine.standins().arg("load").arg(&standins));
        let built = Path::new(env!("CARGO_BIN_EXE_customerio-sync"));
        succeed(engine.standins().arg("program").arg(built).arg("customerio-sync"));
        engine
    }

    fn script(&self, command: &str) -> Command {
        let mut script = limited(root().join("tests/ops/engine.sh"));
        script.arg(command).arg(&self.folder);
        script
    }

    fn standins(&self) -> Command {
        let mut script = limited(root().join("tests/ops/standins.sh"));
        script.env("DOCKER_HOST", self.socket());
        script
    }

    fn socket(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.display())
    }

    fn compose(&self, arguments: &[&str]) -> Command {
        let mut compose = compose();
        compose.env("DOCKER_HOST", self.socket()).args(arguments);
        compose
    }

    /// The answer of a port that a container publishes.
    fn get(&self, url: &str) -> Option<String> {
        let printed = run(self.script("exec").args(["curl", "--silent", "--fail", url]));
        printed.succeeded.then_some(printed.stdout)
    }

    fn get_json(&self, url: &str) -> Option<Value> {
        serde_json::from_str(&self.get(url)?).ok()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        run(&mut self.script("stop"));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn compose() -> Command {
    let plugins = tools().join("docker/compose/usr/libexec/docker/cli-plugins");
    let mut compose = limited(plugins.join("docker-compose"));
    compose.arg("--project-directory").arg(root()).args(["--profile", "grafana"]);
    compose
}

#[test]
fn the_compose_file_is_valid() {
    succeed(compose().args(["config", "--quiet"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compose_file_starts_the_whole_stack() {
    let engine = tokio::task::block_in_place(Engine::with_images);
    let services = ["rabbitmq", "postgres", "simulator", "migrate", "service", "prometheus"];
    let up = ["up", "--detach", "--wait", "--wait-timeout=120", "--no-build", "--pull=never"];
    tokio::task::block_in_place(|| succeed(&mut engine.compose(&[&up[..], &services].concat())));

    for port in [8080, 8081] {
        let page = engine.get(&format!("http://127.0.0.1:{port}/")).expect("the page is served");
        assert!(page.contains("<html"), "{page}");
    }
    let publish = ["run", "--rm", "-T", "--no-deps", "service", "publish", "--sample", "100"];
    tokio::task::block_in_place(|| succeed(&mut engine.compose(&publish)));
    wait_for("100 completed jobs", || async {
        let stats = ["exec", "-T", "service", "/usr/local/bin/customerio-sync", "stats", "--json"];
        let printed = run(&mut engine.compose(&stats));
        let stats: Value = serde_json::from_str(&printed.stdout).ok()?;
        (stats["byStatus"]["completed"] == 100).then_some(())
    })
    .await;
    wait_for("both replicas to be scraped", || async {
        let targets = engine.get_json("http://127.0.0.1:9090/api/v1/targets")?;
        let targets = targets["data"]["activeTargets"].as_array()?.clone();
        (targets.len() == 2 && targets.iter().all(|target| target["health"] == "up")).then_some(())
    })
    .await;
    let rules = engine.get_json("http://127.0.0.1:9090/api/v1/rules").expect("Prometheus answers");
    let groups = rules["data"]["groups"].as_array().expect("groups");
    let count = groups.iter().map(|group| group["rules"].as_array().expect("rules").len());
    assert_eq!(count.sum::<usize>(), crate::alerts::rules().len());

    tokio::task::block_in_place(|| succeed(&mut engine.compose(&["down", "--volumes"])));
    let left =
        tokio::task::block_in_place(|| succeed(&mut engine.compose(&["ps", "--all", "--quiet"])));
    assert_eq!(left, "");
}

/// The health check of the service needs no shell, and fails when nobody answers.
#[test]
fn the_health_check_fails_without_a_service() {
    let printed = run(program(&[]).args(["stats", "--url", "http://127.0.0.1:1"]));
    assert!(!printed.succeeded, "{}", printed.stdout);
}
