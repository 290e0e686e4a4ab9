#!/usr/bin/env bash
# Stand-ins for images, under their names, without an image registry: the servers of Debian 13, with scripts that do
# what those of the official images do, as far as compose.yaml needs it.
#
#   tests/ops/standins.sh root TAR            downloads the file system of the three servers
#   tests/ops/standins.sh load TAR            makes the images postgres, rabbitmq and prom/prometheus of it
#   tests/ops/standins.sh program BINARY TAG  makes an image of the program and its libraries
#
# `load` and `program` use DOCKER_HOST. The packages are unpacked, not installed.
set -euo pipefail
PROMETHEUS_TAG=${PROMETHEUS_TAG:-v3.5.0}
DOCKER=/usr/bin/docker # Of docker.io; another one may come first in the path.

# What the servers do not need: without LLVM PostgreSQL has no JIT, which it then leaves out by itself.
UNUSED='^(perl|libperl|lib.*-perl$|perl-modules|python3|libpython3|libllvm|libz3|systemd|libsqlite3|adduser|passwd$|login|dpkg$)'
UNUSED+='|^(debconf|libdebconf|ucf|locales|libc-l10n|ssl-cert|postgresql-common|postgresql-client-common|init-system|tar$)'
EXCLUDES=(--exclude='./usr/share/doc*' --exclude='./usr/share/man' --exclude='./usr/share/locale' --exclude='./usr/share/info'
  --exclude='./usr/include' --exclude='./usr/lib/postgresql/*/lib/bitcode' --exclude='*/llvmjit*' --exclude='*/gconv/*'
  --exclude='*/usr/share/javascript/moment-timezone/*' --exclude='./var/cache/*' --exclude='./var/lib/dpkg' --exclude='*.a')
BASE=(base-files bash dash coreutils util-linux libc-bin sed grep mawk findutils hostname procps netbase tzdata)

# Everything temporary is below one folder.
W=$(mktemp -d)
trap 'rm -rf "$W"' EXIT

apt_() { # TOOL ARGUMENTS...
  "$1" -qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$W/parts" \
    -o "Dir::State::Lists=$W/lists" -o "Dir::State::status=$W/status" -o "Dir::Cache=$W/cache" \
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3 \
    -o APT::Sandbox::User=root "${@:2}"
}

root() {
  local tar=$1 suite
  mkdir -p "$W"/{parts,lists/partial,cache/archives/partial,debs,root/usr/{bin,sbin,lib,lib64}}
  : >"$W/status" # Nothing is installed, so APT names the whole closure.
  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
    >"$W/parts/debian.list"
  apt_ apt-get update
  local names
  names=$(apt_ apt-get -s install --no-install-recommends "${BASE[@]}" postgresql-17 rabbitmq-server prometheus promtool |
    awk '/^Inst/ { print $2 }' | grep -Ev "$UNUSED")
  # shellcheck disable=SC2086
  (cd "$W/debs" && apt_ apt-get download $names)
  for suite in bin sbin lib lib64; do ln -s "usr/$suite" "$W/root/$suite"; done
  # --keep-directory-symlink: no package replaces these by folders.
  export ROOT=$W/root
  # shellcheck disable=SC2016
  find "$W/debs" -name '*.deb' -print0 | xargs -0 -P 2 -I{} bash -c \
    'dpkg-deb --fsys-tarfile "$0" | tar -x -C "$ROOT" --keep-directory-symlink "$@"' {} "${EXCLUDES[@]}"
  extras "$ROOT"
  tar -c -C "$ROOT" -f "$tar" .
}

# What the images have besides the packages.
extras() { # FOLDER
  mkdir -p "$1"/{etc/{rabbitmq/conf.d,prometheus},var/lib/{postgresql/data,rabbitmq},var/log/rabbitmq,run/postgresql,tmp,prometheus,standin,root}
  rm -rf "${1:?}/var/run"; ln -s /run "$1/var/run" # Where clients look for the socket.
  [[ -e $1/usr/bin/awk ]] || ln -s mawk "$1/usr/bin/awk"
  printf '%s\n' root:x:0:0::/root:/bin/bash postgres:x:999:999::/var/lib/postgresql:/bin/bash \
    rabbitmq:x:998:998::/var/lib/rabbitmq:/bin/bash nobody:x:65534:65534::/:/bin/sh >"$1/etc/passwd"
  printf '%s\n' root:x:0: postgres:x:999: rabbitmq:x:998: nogroup:x:65534: >"$1/etc/group"
  # Of the official images: guest may log in from elsewhere.
  printf '%s\n' 'loopback_users.guest = false' 'log.console = true' >"$1/etc/rabbitmq/conf.d/10-defaults.conf"
  echo '[rabbitmq_management,rabbitmq_prometheus].' >"$1/etc/rabbitmq/enabled_plugins"
  cat >"$1/standin/postgres" <<'SH'
#!/bin/bash
# As docker-library/postgres: the first start makes the cluster, then the database on a server that only listens on its
# socket, then the real server starts.
set -eu
if [[ ${1:-} == -* ]]; then set -- postgres "$@"; fi
if [[ ${1:-} != postgres ]]; then exec "$@"; fi
if [[ $(id -u) == 0 ]]; then
  mkdir -p "$PGDATA" /run/postgresql
  chown postgres:postgres "$PGDATA" /run/postgresql; chmod 700 "$PGDATA"
  exec setpriv --reuid postgres --regid postgres --clear-groups env HOME=/var/lib/postgresql "$0" "$@"
fi
if [[ ! -s $PGDATA/PG_VERSION ]]; then
  user=${POSTGRES_USER:-postgres} name=${POSTGRES_DB:-${POSTGRES_USER:-postgres}}
  [[ -n ${POSTGRES_PASSWORD:-} ]] || { echo 'Error: Database is uninitialized and superuser password is not specified.' >&2; exit 1; }
  initdb --username="$user" --pwfile=<(echo "$POSTGRES_PASSWORD") --encoding=UTF8 --locale=C.UTF-8 --auth-host=scram-sha-256
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
  pg_ctl -w -o "-c listen_addresses=''" start
  if [[ $name != postgres ]]; then psql -v ON_ERROR_STOP=1 -U "$user" -d postgres -c "CREATE DATABASE \"$name\""; fi
  pg_ctl -w -m fast stop
fi
exec "$@"
SH
  cat >"$1/standin/rabbitmq" <<'SH'
#!/bin/bash
set -eu
export HOME=/var/lib/rabbitmq LANG=C.UTF-8
if [[ ${1:-} == rabbitmq-server && $(id -u) == 0 ]]; then
  chown -R rabbitmq:rabbitmq /var/lib/rabbitmq /var/log/rabbitmq /etc/rabbitmq
  exec setpriv --reuid rabbitmq --regid rabbitmq --clear-groups "$0" "$@"
fi
exec "$@"
SH
  # Debian's Prometheus has another default folder than the official one, which is data below the working folder.
  rm -rf "$1/var/lib/prometheus"; mkdir "$1/var/lib/prometheus"; ln -s /prometheus "$1/var/lib/prometheus/metrics2"
  chmod +x "$1"/standin/*
  chmod 1777 "$1/tmp"; chown 65534:65534 "$1/prometheus"
  : >"$1/etc/prometheus/prometheus.yml"
}

load() {
  local tar=$1 base bins
  # The folders of the programs are in no PATH, and their versions differ.
  bins=$(tar -t -f "$tar" | grep -E '^\./usr/lib/(postgresql/[0-9]+/bin/initdb|rabbitmq/lib/rabbitmq_server-[^/]+/sbin/rabbitmqctl)$' |
    sed -E 's#^\.(.*)/[^/]*$#\1#' | paste -sd:)
  base=$("$DOCKER" import --change "ENV PATH=$bins:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$tar")
  # The classic builder, which needs no buildx; without RUN it starts no container. `commit` knows no STOPSIGNAL.
  build() { DOCKER_BUILDKIT=0 "$DOCKER" build --quiet --tag "$1" - >/dev/null; }
  build postgres:17 <<DOCKERFILE
FROM $base
ENV PGDATA=/var/lib/postgresql/data
VOLUME /var/lib/postgresql/data
EXPOSE 5432
# SIGTERM would wait until the last client has left.
STOPSIGNAL SIGINT
ENTRYPOINT ["/standin/postgres"]
CMD ["postgres"]
DOCKERFILE
  build rabbitmq:4-management <<DOCKERFILE
FROM $base
ENV HOME=/var/lib/rabbitmq LANG=C.UTF-8
VOLUME /var/lib/rabbitmq
EXPOSE 5672 15672 15692
ENTRYPOINT ["/standin/rabbitmq"]
CMD ["rabbitmq-server"]
DOCKERFILE
  build "prom/prometheus:$PROMETHEUS_TAG" <<DOCKERFILE
FROM $base
USER nobody
WORKDIR /prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
DOCKERFILE
}

program() {
  local binary=$1 name=$2 root=$W/root library
  mkdir -p "$root"/{usr/local/bin,etc/ssl/certs,tmp,home/nonroot}; chmod 1777 "$root/tmp"
  strip -o "$root/usr/local/bin/customerio-sync" "$binary"
  ldd "$binary" | grep -oE '/[^ ]+' | while read -r library; do install -D -m 755 "$library" "$root$library"; done
  cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  echo 'nonroot:x:65532:65532::/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
  tar -c -C "$root" . | "$DOCKER" import --change 'USER 65532:65532' --change 'ENTRYPOINT ["/usr/local/bin/customerio-sync"]' \
    --change 'ENV HTTP_ADDR=0.0.0.0:8080' \
    --change 'ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' - "$name" >/dev/null
}

"$@"
