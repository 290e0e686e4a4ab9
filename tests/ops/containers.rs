//! The image, and the pods of the chart as containers with an arbitrary user, a read-only root and
//! no capabilities.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    helm::{Helm, chart, documents, values_file},
    objects::{find, items, kind, only, pod},
    support::{World, free_addr, http_client, root, submitted, wait_for},
    tools::{Printed, limited, run, succeed, tools},
};

const IMAGE: &str = "localhost/customerio-sync:test";
/// A user as OpenShift assigns it: an arbitrary number, in the group root.
const USER: &str = "1000680000:0";
/// Maximum size of the image as an archive, of a release build and of a debug build, in bytes.
const ARCHIVE_BYTES_MAX: [u64; 2] = [20_000_000, 25_000_000];

/// A private podman, with the image of the program.
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn with_image() -> Self {
        // Not in a temporary folder, which may be in memory or on an overlay.
        let podman = Self { folder: tools().join(format!("podman-{}", Uuid::new_v4().simple())) };
        succeed(podman.script().arg("image").arg(program()));
        podman
    }

    fn script(&self) -> Command {
        let mut script = limited(root().join("tests/ops/containers.sh"));
        script.arg(&self.folder);
        script
    }

    fn run(&self, arguments: &[&str]) -> Printed {
        run(self.script().arg("podman").args(arguments))
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        succeed(self.script().arg("podman").args(arguments))
    }

    /// Runs the program in a container that is restricted like a pod of the chart.
    fn restricted(&self, arguments: &[&str]) -> Printed {
        let options = [
            "run",
            "--rm",
            "--pull=never",
            "--read-only",
            "--read-only-tmpfs=false",
            "--user",
            USER,
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--network=host",
            IMAGE,
        ];
        self.run(&[&options[..], arguments].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        run(self.script().arg("clean"));
    }
}

/// The program in the image: the release build of `./dev ops --release`, or that of the tests.
fn program() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_customerio-sync");
    std::env::var_os("OPS_BINARY").map_or_else(|| built.into(), |path| root().join(path))
}

#[test]
fn hadolint_accepts_the_dockerfile() {
    succeed(limited(tools().join("python/bin/hadolint")).arg(root().join("Dockerfile")));
}

#[test]
fn the_image_is_small_and_runs_with_any_user_and_nothing_to_write_to() {
    let podman = Podman::with_image();
    let printed = podman.restricted(&["--version"]);
    let version = format!("customerio-sync {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(printed.stdout.trim(), version, "{}", printed.stderr);

    let inspected = podman.succeed(&["image", "inspect", IMAGE]);
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    let config = &inspected[0]["Config"];
    assert_eq!(config["User"], "65532:65532", "a number, so that runAsNonRoot can be verified");
    assert_eq!(config["Entrypoint"], json!(["/usr/local/bin/customerio-sync"]));
    assert_eq!(config["Cmd"], json!(["serve"]));
    let label = |name: &str| &config["Labels"][format!("org.opencontainers.image.{name}")];
    assert_eq!(*label("title"), "customerio-sync");
    assert_eq!(*label("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(*label("revision"), "test");
    assert_eq!(*label("licenses"), "Apache-2.0");

    let archive = podman.folder.join("image.tar");
    succeed(podman.script().arg("archive").arg(&archive));
    let bytes = std::fs::metadata(&archive).expect("the archive is there").len();
    println!("archive: {bytes} bytes");
    let [release, debug] = ARCHIVE_BYTES_MAX;
    let is_release = program().components().any(|part| part.as_os_str() == "release");
    assert!(bytes <= if is_release { release } else { debug }, "{bytes} bytes");
}

/// Turns an object of the chart into a pod that podman 4.3 runs as a cluster would. It supports
/// neither Secrets nor projections as volumes, so these become folders of the host; it executes no
/// probes; and it publishes no ports of pods in the host's network.
fn playable(object: &Value, secrets: &BTreeMap<&str, String>, folder: &Path) -> Value {
    let mut spec = pod(object).expect("a pod")["spec"].clone();
    let name = format!("{}-{}", kind(object).to_lowercase(), Uuid::new_v4().simple());
    spec["restartPolicy"] = "Never".into();
    spec["securityContext"]["runAsUser"] = 1_000_680_000.into();
    spec["securityContext"]["runAsGroup"] = 0.into();
    for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
        let name = volume["name"].as_str().expect("a name").to_owned();
        if volume["projected"].is_null() {
            continue;
        }
        let path = folder.join(&name);
        std::fs::create_dir_all(&path).expect("created");
        let mut entries = Vec::new();
        find(&volume["projected"], "items", &mut entries);
        for entry in entries.into_iter().flat_map(|entries| items(entries).collect::<Vec<_>>()) {
            let (key, file) = (entry["key"].as_str(), entry["path"].as_str());
            let secret = &secrets[key.expect("a key")];
            std::fs::write(path.join(file.expect("a path")), secret).expect("written");
        }
        *volume = json!({ "name": name, "hostPath": { "path": path, "type": "Directory" } });
    }
    for container in spec["containers"].as_array_mut().expect("containers") {
        let fields = container.as_object_mut().expect("an object");
        for field in ["ports", "livenessProbe", "readinessProbe", "startupProbe"] {
            fields.remove(field);
        }
        fields.insert("image".to_owned(), IMAGE.into());
        fields.insert("imagePullPolicy".to_owned(), "Never".into());
        for variable in container["env"].as_array_mut().into_iter().flatten() {
            if let Some(key) = variable["valueFrom"]["secretKeyRef"]["key"].as_str() {
                *variable = json!({ "name": variable["name"], "value": secrets[key] });
            }
        }
    }
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name }, "spec": spec })
}

/// Plays a pod with the ConfigMap of the release, and returns the name of its container.
fn play(podman: &Podman, pod: &Value, config: &Value) -> String {
    let file = podman.folder.join("pod.yaml");
    std::fs::write(&file, format!("{config}\n---\n{pod}\n")).expect("written");
    let file = file.display().to_string();
    podman.succeed(&["kube", "play", "--network=host", &file]);
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    format!("{}-{}", name(&pod["metadata"]), name(&pod["spec"]["containers"][0]))
}

/// Waits until a container ends, and requires that it succeeded.
fn ended(podman: &Podman, container: &str) -> String {
    let status = podman.succeed(&["wait", container]);
    let log = podman.run(&["logs", container]);
    assert_eq!(status.trim(), "0", "{container}:\n{}{}", log.stdout, log.stderr);
    format!("{}{}", log.stdout, log.stderr)
}

/// What the kernel says about a process in a container.
fn restrictions(podman: &Podman, container: &str) -> Vec<String> {
    let pid = podman.succeed(&["inspect", container, "--format", "{{.State.Pid}}"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).expect("it runs");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", pid.trim())).expect("it runs");
    let fields = ["Uid", "Gid", "CapBnd", "NoNewPrivs", "Seccomp"];
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default().to_owned()
    };
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).expect("a root");
    let root = root.split(' ').nth(3).expect("options").split(',').next().expect("an option");
    fields.map(field).into_iter().chain([root.to_owned()]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_the_chart_run_as_containers() {
    let world = World::new().await;
    let addr = free_addr();
    let values = values_file(&format!(
        "config: {{customerio: {{track_url: \"http://{}\"}}, http: {{addr: \"0.0.0.0:{}\"}}}}",
        world.simulator.addr(),
        addr.port()
    ));
    let objects = documents(&Helm::V4.template(&chart(), values.path(), &[]));
    let config = only(&objects, "ConfigMap");
    let secrets = BTreeMap::from([
        ("DATABASE_URL", world.database_url.clone()),
        ("AMQP_URL", world.amqp_url.clone()),
        ("CUSTOMERIO_SITE_ID", "site".to_owned()),
        ("CUSTOMERIO_API_KEY", "key".to_owned()),
        ("ADMIN_TOKENS", "ann:operator:0123456789abcdef".to_owned()),
    ]);
    let podman = tokio::task::block_in_place(Podman::with_image);
    let start = |wanted: &str| {
        let pod = playable(only(&objects, wanted), &secrets, &podman.folder);
        let container = play(&podman, &pod, config);
        (pod["metadata"]["name"].as_str().expect("a name").to_owned(), container)
    };

    let (_, migration) = tokio::task::block_in_place(|| start("Job"));
    tokio::task::block_in_place(|| ended(&podman, &migration));
    let (pod, service) = tokio::task::block_in_place(|| start("Deployment"));
    wait_for("the container to be ready", || async {
        let ready = http_client().get(format!("http://{addr}/readyz")).send().await.ok()?;
        ready.status().is_success().then_some(())
    })
    .await;
    let restrictions = tokio::task::block_in_place(|| restrictions(&podman, &service));
    assert_eq!(restrictions, ["1000680000", "0", "0000000000000000", "1", "2", "ro"]);

    for _ in 0..300 {
        world.submit(&submitted(Uuid::new_v4())).await;
    }
    wait_for("300 completed jobs", || async {
        let sql = "SELECT count(*) FROM signup_customerio_sync_jobs WHERE status = 'completed'";
        (world.count(sql).await == 300).then_some(())
    })
    .await;
    let (_, test) = tokio::task::block_in_place(|| start("Pod"));
    tokio::task::block_in_place(|| ended(&podman, &test));

    let grace =
        only(&objects, "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            .to_string();
    tokio::task::block_in_place(|| {
        podman.succeed(&["pod", "stop", "--time", &grace, &pod]);
        ended(&podman, &service)
    });
}
