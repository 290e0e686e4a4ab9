#!/usr/bin/env bash
# Containers without an image registry and without systemd, as root on Debian 12. Everything is in the folder D, which
# must be an absolute path without spaces.
#
#   tests/ops/containers.sh D image BINARY    the image localhost/customerio-sync:test, from the Dockerfile's last stage
#   tests/ops/containers.sh D archive FILE    writes the image as an OCI archive
#   tests/ops/containers.sh D podman …        runs podman
#   tests/ops/containers.sh D clean           removes pods, images and D
#
# Packages: podman buildah runc.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
D=$1
readonly IMAGE=localhost/customerio-sync:test BASE=gcr.io/distroless/cc-debian12:nonroot
# podman and buildah read only these.
export CONTAINERS_CONF=$D/containers.conf CONTAINERS_STORAGE_CONF=$D/storage.conf
export CONTAINERS_REGISTRIES_CONF=$D/registries.conf REGISTRY_AUTH_FILE=$D/auth.json TMPDIR=$D/tmp
unset XDG_RUNTIME_DIR CONTAINER_HOST DOCKER_HOST NOTIFY_SOCKET BUILDAH_ISOLATION

download() { # PACKAGES...
  (cd "$D/packages" && apt-get download -qq -o APT::Sandbox::User=root "$@")
}

setup() {
  mkdir -p "$D"/{storage,run,tmp,helpers,network,packages}
  # containers.conf has no place for options of runc, which keeps its state in /run/runc by default.
  printf '#!/bin/sh\nexec %s --root %s "$@"\n' "$(command -v runc)" "$D/run/runc" >"$D/helpers/runc"
  # Each pod has a container with this program.
  download catatonit
  dpkg-deb --fsys-tarfile "$D"/packages/catatonit_*.deb | tar -xO ./usr/bin/catatonit >"$D/helpers/catatonit"
  chmod +x "$D"/helpers/*
  # Without systemd: cgroupfs, and events in a file. The default limit of open files may be above the machine's.
  cat >"$CONTAINERS_CONF" <<EOF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "$D/run/libpod"
static_dir = "$D/storage/libpod"
volume_path = "$D/storage/volumes"
helper_binaries_dir = ["$D/helpers"]
[engine.runtimes]
runc = ["$D/helpers/runc"]
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[network]
network_config_dir = "$D/network"
EOF
  printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$D/storage" "$D/run" \
    >"$CONTAINERS_STORAGE_CONF"
  echo 'unqualified-search-registries = []' >"$CONTAINERS_REGISTRIES_CONF"
  echo '{}' >"$REGISTRY_AUTH_FILE"
}

# A stand-in for the distroless base image, under its name: the same packages of Debian, and the same user.
base() {
  local files=$D/base package packages=(base-files libc6 libgcc-s1 ca-certificates tzdata)
  download "${packages[@]}"
  mkdir -p "$files"/{etc/ssl/certs,home/nonroot}
  for package in "${packages[@]}"; do dpkg-deb -x "$D/packages/$package"_*.deb "$files"; done
  rm -rf "$files"/usr/share/{doc,man,locale,lintian,info}
  cat "$files"/usr/share/ca-certificates/mozilla/*.crt >"$files/etc/ssl/certs/ca-certificates.crt"
  echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$files/etc/passwd"
  tar -C "$files" --sort=name --numeric-owner -c . | podman import -q --change USER=65532 \
    --change WORKDIR=/home/nonroot --change ENV=SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt - "$BASE"
}

image() { # BINARY
  setup
  base
  # The folder takes the place of the stage `build`, of which nothing is executed.
  mkdir -p "$D"/{stage/out,context}
  strip -o "$D/stage/out/customerio-sync" "$1"
  buildah bud --quiet --isolation chroot --pull-never --timestamp 0 --build-context "build=$D/stage" \
    --build-arg "BASE_IMAGE=$BASE" --build-arg REVISION=test --file "$root/Dockerfile" --tag "$IMAGE" "$D/context"
}

archive() { # FILE
  buildah push --quiet --format oci "$IMAGE" "oci-archive:$1:customerio-sync:test"
}

clean() {
  podman pod rm --force --time 0 --all >/dev/null 2>&1 || true
  podman rm --force --time 0 --all >/dev/null 2>&1 || true
  awk -v prefix="$D/" 'index($2, prefix) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount --lazy
  # podman leaves its empty cgroups.
  find /sys/fs/cgroup -depth -type d -path '*/libpod_parent*' -exec rmdir {} + 2>/dev/null || true
  rm -rf "${D:?}"
}

# podman writes a file into its working directory when the memory of a container is exhausted.
mkdir -p "$D/tmp" && cd "$D"
"${@:2}"
