#!/usr/bin/env bash
# A private Docker engine, with compose, for one test: as root on Debian 12, in namespaces of its own.
#
#   tests/ops/engine.sh start D      starts dockerd with its data in the folder D, and returns when it answers
#   tests/ops/engine.sh exec D CMD   runs a command in the network namespace of the engine, where published ports are
#   tests/ops/engine.sh stop D       stops it and removes its data
#   tests/ops/engine.sh compose D    downloads docker-compose into D/compose
#
# Clients use the socket D/docker.sock. Packages: docker.io iptables.
set -euo pipefail

# The path of a socket has at most 107 characters.
D=$(realpath -m "${2:?usage: engine.sh start|exec|stop|compose FOLDER}")
# No namespace confines cgroups, so containers get a parent of their own, which `stop` removes.
CGROUP=engine-$(md5sum <<<"$D" | cut -c1-12)

# The first process of the engine's process namespace. dockerd also writes to /run and /etc/docker, which are empty in
# its mount namespace.
inside() {
  mount -t tmpfs tmpfs /run
  mount -t tmpfs tmpfs /etc/docker
  ip link set lo up
  /usr/sbin/dockerd --data-root "$D/data" --exec-root /run/docker --pidfile /run/dockerd.pid \
    --host "unix://$D/docker.sock" --cgroup-parent "/$CGROUP" --exec-opt native.cgroupdriver=cgroupfs \
    --storage-driver overlay2 --log-level warn --shutdown-timeout 5 &
  trap 'kill -TERM $!' TERM
  wait $! || wait $! # The first wait ends at the signal.
}

start() {
  mkdir -p "$D"
  if [[ -n $(first 2>/dev/null) ]]; then echo "an engine runs in $D" >&2; return 1; fi
  # --kill-child: if `unshare` is killed, everything in the namespaces ends.
  setsid unshare --mount --net --pid --ipc --fork --kill-child --mount-proc \
    bash "${BASH_SOURCE[0]}" inside "$D" </dev/null >"$D/log" 2>&1 &
  echo $! >"$D/pid"
  disown
  local i
  for ((i = 0; i < 300; i++)); do
    if curl -fs -o /dev/null --unix-socket "$D/docker.sock" http://engine/_ping; then return; fi
    kill -0 "$(<"$D/pid")" 2>/dev/null || break # Our child, so nobody else has its number.
    sleep 0.1
  done
  cat "$D/log" >&2
  stop
  return 1
}

# Whether the process is that engine: not another one with a used number, nor a zombie, whose command line is empty.
alive() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "inside $D "; }

# The process id of `inside` in the namespace of this script.
first() { alive "$(<"$D/pid")" && cat "/proc/$(<"$D/pid")/task/$(<"$D/pid")/children"; }

stop() {
  local pid child i
  if pid=$(cat "$D/pid" 2>/dev/null) && child=$(first 2>/dev/null); then
    # shellcheck disable=SC2086  # The list ends with a blank.
    kill -TERM $child 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do alive "$pid" || break; sleep 0.1; done
    # With the first process of the namespace all others in it end: dockerd, containerd, shims, containers.
    # shellcheck disable=SC2086
    kill -KILL $child 2>/dev/null || true
    while alive "$pid"; do sleep 0.05; done
  fi
  for child in /sys/fs/cgroup/"$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
    if [[ -d $child ]]; then find "$child" -depth -type d -exec rmdir {} +; fi
  done
  rm -rf "${D:?}/data" "$D/docker.sock" "$D/pid" "$D/log"
}

exec_in() { exec nsenter --target "$(first | tr -d ' ')" --net -- "$@"; }

# Debian 12 has no compose, so this is the package of Debian 13. APT uses sources and lists of its own.
compose() {
  local apt=$D/apt deb
  mkdir -p "$apt"/{parts,lists/partial,cache/archives/partial}
  echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main' \
    >"$apt/parts/trixie.list"
  local options=(-qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$apt/parts"
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o Acquire::Languages=none
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o APT::Sandbox::User=root -o Acquire::Retries=3)
  apt-get "${options[@]}" update
  (cd "$apt" && apt-get "${options[@]}" download docker-compose)
  deb=$(echo "$apt"/docker-compose_*.deb)
  dpkg-deb -x "$deb" "$D/compose"
  rm -rf "$apt"
  "$D/compose/usr/libexec/docker/cli-plugins/docker-compose" version --short
}

case $1 in
  start | stop | compose | inside) "$1" ;;
  exec) shift 2; exec_in "$@" ;;
  *) exit 2 ;;
esac
