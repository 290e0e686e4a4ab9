//! A Prometheus server that scrapes the service of a test, and what it answers.

use std::path::Path;

use serde_json::Value;

use crate::support::{Process, free_addr, http_client, wait_for};

/// The job of the scraped targets.
pub(crate) const JOB: &str = "customerio-sync";

/// Their namespace.
pub(crate) const NAMESPACE: &str = "prod";

/// A running server. It stops when it is dropped.
pub(crate) struct Prometheus {
    url: String,
    http: reqwest::Client,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts a server that scrapes `targets` every second and evaluates the rules of a file.
    pub(crate) async fn start(targets: &[String], rules: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("prometheus.yaml");
        let rules = rules.map(|path| format!("rule_files: [{}]\n", path.display()));
        let content = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n{}\
             scrape_configs: [{{job_name: {JOB}, static_configs: [{{targets: {targets:?}, \
             labels: {{namespace: {NAMESPACE}}}}}]}}]\n",
            rules.unwrap_or_default(),
        );
        std::fs::write(&config, content).expect("written");
        let addr = free_addr();
        let mut program = std::process::Command::new("prometheus");
        program.arg(format!("--config.file={}", config.display()));
        program.arg(format!("--storage.tsdb.path={}/data", folder.path().display()));
        program.arg(format!("--web.listen-address={addr}"));
        let process = Process::start(program, &[]);
        let url = format!("http://{addr}");
        let started = Self { url, http: http_client(), _process: process, _folder: folder };
        wait_for("Prometheus to be ready", || async {
            let ready = started.http.get(format!("{}/-/ready", started.url)).send().await.ok()?;
            ready.status().is_success().then_some(())
        })
        .await;
        started
    }

    /// Asks the HTTP API, and returns `data` of the answer.
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let query =
            form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters).finish();
        let url = format!("{}/api/v1/{path}?{query}", self.url);
        let response = self.http.get(url).send().await.expect("Prometheus answers");
        let text = response.text().await.expect("a body");
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(answer["status"], "success", "{parameters:?}: {text}");
        answer["data"].clone()
    }

    /// The names of the alerts that fire.
    pub(crate) async fn firing(&self) -> Vec<String> {
        let alerts = self.ask("alerts", &[]).await;
        let alerts = alerts["alerts"].as_array().expect("alerts").clone();
        let firing = alerts.into_iter().filter(|alert| alert["state"] == "firing");
        let names =
            firing.map(|alert| alert["labels"]["alertname"].as_str().expect("a name").to_owned());
        names.collect()
    }

    pub(crate) async fn wait_until_firing(&self, alert: &str) {
        wait_for(&format!("{alert} to fire"), || async {
            self.firing().await.iter().any(|name| name == alert).then_some(())
        })
        .await;
    }

    pub(crate) async fn wait_until_resolved(&self, alert: &str) {
        wait_for(&format!("{alert} to be resolved"), || async {
            self.firing().await.iter().all(|name| name != alert).then_some(())
        })
        .await;
    }

    /// The number of series with at least one finite value now.
    pub(crate) async fn series(&self, expression: &str) -> usize {
        let result = self.ask("query", &[("query", expression)]).await;
        let series = result["result"].as_array().expect("series");
        let finite = |series: &&Value| {
            let value = series["value"][1].as_str().and_then(|text| text.parse::<f64>().ok());
            value.is_some_and(f64::is_finite)
        };
        series.iter().filter(finite).count()
    }

    /// The values of a label in the series of a metric.
    pub(crate) async fn label_values(&self, label: &str, selector: &str) -> Vec<String> {
        let path = format!("label/{label}/values");
        let values = self.ask(&path, &[("match[]", selector)]).await;
        let values = values.as_array().expect("values").iter();
        values.map(|value| value.as_str().expect("a text").to_owned()).collect()
    }
}
