#!/usr/bin/env bash
# tools/engine.sh [start|stop]: a Docker engine for tests and builds.
#   start  takes the engine that answers already, else (root) starts dockerd by hand with all its files in the cache
#          folder, and prints shell assignments for it: eval "$(tools/engine.sh)"
#            DOCKER_HOST           where the engine listens
#            DOCKER_CONFIG         only if `docker compose` needs the plugin that tools/build.sh built
#            TIDEGATE_DOCKER       a client that can build with BuildKit
#            TIDEGATE_ENGINE       found or started
#   stop   ends the engine that start started, and takes its bridge and packet filter rules away. Images stay cached.
set -euo pipefail
cd "$(dirname "$0")/.."
dir="${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/docker"
socket=$dir/docker.sock
die() { echo "engine: $*" >&2; exit 1; }
# A Unix socket's name has 107 bytes at most, and containerd's lies deeper.
[ ${#dir} -le 70 ] || die "the cache folder's name is too long for sockets: set XDG_CACHE_HOME to a shorter one"

# What start found before dockerd changed it, kept in one file each: the kernel's switches and the forwarding policy.
switches="ipv4/ip_forward bridge/bridge-nf-call-iptables bridge/bridge-nf-call-ip6tables"

answers() { DOCKER_HOST=$1 timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
boot() { cat /proc/sys/kernel/random/boot_id; }
running() { [ -f "$dir/docker.pid" ] && [ "$(cat "/proc/$(cat "$dir/docker.pid")/comm" 2>/dev/null)" = dockerd ]; }

# client prints a docker command that can build with BuildKit: since version 23 that takes the buildx plugin.
client() {
  local c
  for c in docker /usr/bin/docker; do
    command -v "$c" >/dev/null || continue
    if "$c" buildx version >/dev/null 2>&1 || [ "$("$c" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -lt 23 ]; then
      command -v "$c"
      return
    fi
  done
  die "no docker client that can build with BuildKit: install docker-buildx"
}

print() { # HOST STATE
  local docker
  docker=$(client)
  echo "export DOCKER_HOST='$1' TIDEGATE_DOCKER='$docker' TIDEGATE_ENGINE=$2 DOCKER_BUILDKIT=1"
  if ! docker compose version >/dev/null 2>&1; then
    mkdir -p "$dir/config/cli-plugins"
    ln -sf "${dir%/docker}/tools/docker-compose" "$dir/config/cli-plugins/docker-compose"
    echo "export DOCKER_CONFIG='$dir/config'"
  fi
}

start() {
  command -v docker >/dev/null || die "docker is not installed: run make setup as root"
  local host
  for host in ${DOCKER_HOST:+"$DOCKER_HOST"} unix:///var/run/docker.sock "unix://$socket"; do
    if answers "$host"; then print "$host" found; return; fi
  done
  [ "$(id -u)" = 0 ] || die "no Docker engine answers, and only root can start one"
  command -v dockerd >/dev/null || die "dockerd is not installed: run make setup"
  mkdir -p "$dir"
  exec 9>"$dir/lock"
  flock 9
  # The other starter may have been first.
  if answers "unix://$socket"; then print "unix://$socket" found; return; fi
  rm -f "$dir/docker.pid" "$socket"
  echo '{}' >"$dir/daemon.json" # the machine's own settings are for its own engine
  local switch
  for switch in $switches; do # without br_netfilter, which dockerd loads, bridged frames pass no filter: off
    cat "/proc/sys/net/$switch" >"$dir/${switch##*/}" 2>/dev/null || echo 0 >"$dir/${switch##*/}"
  done
  iptables -S FORWARD 2>/dev/null | head -n1 >"$dir/policy" || true
  boot >"$dir/boot"
  setsid nohup dockerd --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" \
    --host "unix://$socket" --config-file "$dir/daemon.json" >"$dir/docker.log" 2>&1 </dev/null 9>&- &
  local i
  for i in $(seq 300); do
    if answers "unix://$socket"; then print "unix://$socket" started; return; fi
    [ "$i" -lt 10 ] || running || break
    sleep 0.2
  done
  tail -n 20 "$dir/docker.log" >&2
  die "dockerd does not start, its log is $dir/docker.log"
}

stop() {
  [ -d "$dir" ] || return 0
  exec 9>"$dir/lock"
  flock 9
  if running; then
    local pid i
    pid=$(cat "$dir/docker.pid")
    kill "$pid"
    for i in $(seq 150); do
      [ -d "/proc/$pid" ] || break
      sleep 0.2
    done
    [ ! -d "/proc/$pid" ] || die "dockerd (process $pid) does not end"
  elif [ ! -f "$dir/policy" ]; then
    return 0 # nothing was started, or it was cleaned up
  fi
  # Since a restart of the machine, or beside it, another engine may run: bridges, chains and switches are that one's.
  if { [ -f "$dir/boot" ] && [ "$(cat "$dir/boot")" != "$(boot)" ]; } || answers unix:///var/run/docker.sock; then
    rm -f "$dir"/{policy,boot,docker.pid,docker.sock,ip_forward,bridge-nf-call-iptables,bridge-nf-call-ip6tables}
    return 0
  fi
  # dockerd leaves its bridges and chains.
  local link table
  for link in $(ip -o link show type bridge | sed -n 's/^[0-9]*: \(docker0\|br-[0-9a-f]\{12\}\):.*/\1/p'); do
    ip link delete "$link"
  done
  for table in nat filter; do
    iptables-save -t $table | grep -v -e DOCKER -e docker0 -e '[io] br-[0-9a-f]\{12\}' | iptables-restore
  done
  # shellcheck disable=SC2046 # the policy is three words, as iptables prints it
  [ ! -s "$dir/policy" ] || iptables $(cat "$dir/policy")
  local switch
  for switch in $switches; do
    [ ! -s "$dir/${switch##*/}" ] || [ ! -w "/proc/sys/net/$switch" ] || cat "$dir/${switch##*/}" >"/proc/sys/net/$switch"
    rm -f "$dir/${switch##*/}"
  done
  rm -f "$dir/policy" "$dir/boot" "$dir/docker.pid" "$socket"
}

case ${1:-start} in
start) start ;;
stop) stop ;;
*) echo "usage: engine.sh [start|stop]" >&2; exit 2 ;;
esac
