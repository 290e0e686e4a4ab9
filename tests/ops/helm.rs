//! Helm, in the two versions that the chart supports.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    support::root,
    tools::{limited, succeed, tools},
};

/// The name of the release in renders.
pub(crate) const RELEASE: &str = "prod";

/// A version of Helm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Helm {
    V3,
    V4,
}

impl Helm {
    pub(crate) const ALL: [Self; 2] = [Self::V3, Self::V4];

    pub(crate) fn command(self) -> Command {
        let folder = match self {
            Self::V3 => "helm3",
            Self::V4 => "helm4",
        };
        limited(tools().join(folder).join("helm/helm"))
    }

    /// The output of `helm template` for a chart.
    pub(crate) fn template(self, chart: &Path, values: &Path, further: &[&str]) -> String {
        let mut command = self.command();
        command.arg("template").arg(RELEASE).arg(chart).arg("--values").arg(values).args(further);
        succeed(&mut command)
    }

    /// The objects that our chart renders from a file of `ci/`.
    pub(crate) fn render(self, name: &str) -> Vec<Value> {
        documents(&self.template(&chart(), &ci_values(name), &[]))
    }

    /// The objects that our chart renders from these values.
    pub(crate) fn render_values(self, values: &str) -> Vec<Value> {
        let file = values_file(values);
        documents(&self.template(&chart(), file.path(), &[]))
    }
}

/// The folder of the chart.
pub(crate) fn chart() -> PathBuf {
    root().join("helm/customerio-sync")
}

fn ci_values(name: &str) -> PathBuf {
    chart().join(format!("ci/{name}-values.yaml"))
}

/// The names of the values files in `ci/`.
pub(crate) fn ci_names() -> Vec<String> {
    let files = std::fs::read_dir(chart().join("ci")).expect("the folder is there");
    let name = |file: std::fs::DirEntry| file.file_name().into_string().expect("UTF-8");
    let names = files.map(|file| name(file.expect("readable")));
    let mut names: Vec<_> =
        names.filter_map(|name| name.strip_suffix("-values.yaml").map(str::to_owned)).collect();
    names.sort();
    assert!(names.len() >= 8, "{names:?}");
    names
}

/// The content of a values file in `ci/`.
pub(crate) fn ci_content(name: &str) -> Value {
    yaml(&std::fs::read_to_string(ci_values(name)).expect("the file is there"))
}

/// Writes values to a temporary file.
pub(crate) fn values_file(values: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").expect("a temporary file");
    std::fs::write(file.path(), values).expect("written");
    file
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    succeed(limited("cp").arg("-r").arg(from).arg(to));
}

/// Parses one YAML document.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Parses the YAML documents of a render. Comments alone are no document.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}
