#!/usr/bin/env bash
# Installs what generation and tests need from Debian's packages, once, and the commit hook. Without root
# or apt it says what is missing and goes on: tests then skip what they cannot do (and say so).
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A need=(
  [/usr/bin/python3]=python3 [clang-14]=clang-14 [llvm-strip-14]=llvm-14 [/usr/include/bpf/bpf_helpers.h]=libbpf-dev
  [/usr/include/linux/bpf.h]=linux-libc-dev [/usr/lib/postgresql/15/bin/postgres]=postgresql-15
  [ip]=iproute2 [ping]=iputils-ping [tcpdump]=tcpdump [tshark]=tshark [chromium]=chromium
  [/usr/sbin/mariadbd]=mariadb-server [/usr/lib/galera/libgalera_smm.so]=galera-4 [rsync]=rsync
  [zsh]=zsh [fish]=fish [systemd-analyze]=systemd [promtool]=prometheus
  [/usr/sbin/dockerd]=docker.io [debootstrap]=debootstrap [qemu-aarch64-static]=qemu-user-static [qemu-system-x86_64]=qemu-system-x86 [xz]=xz-utils
)
missing=()
for what in "${!need[@]}"; do
  if [[ $what == /* ]]; then [ -e "$what" ] || missing+=("${need[$what]}"); else command -v "$what" >/dev/null || missing+=("${need[$what]}"); fi
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing ${missing[*]}"
    log=$(mktemp)
    export DEBIAN_FRONTEND=noninteractive
    # A server that apt installs must not start by itself on the test machine, now or at the next boot: Prometheus would have
    # the port of our metrics. With systemd only policy-rc.d keeps a package from starting its server.
    new=()
    for server in prometheus mariadb postgresql docker.service docker.socket; do
      [ ! -d /run/systemd/system ] || systemctl -q is-enabled $server 2>/dev/null || new+=("$server")
    done
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
      trap 'rm -f $policy' EXIT
      printf '#!/bin/sh\nexit 101\n' >$policy
      chmod 0755 $policy
    fi
    { apt-get update && RUNLEVEL=1 apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 ||
      { tail -n 20 "$log"; echo "setup: apt-get could not install ${missing[*]}" >&2; exit 1; }
    rm -f "$log"
    for server in "${new[@]}"; do systemctl -q disable "$server" 2>/dev/null || true; done
  else
    echo "setup: missing ${missing[*]}; install them as root for the full set of tests" >&2
  fi
fi

if [ -z "${CI:-}" ] && hooks=$(git rev-parse --git-path hooks 2>/dev/null) && [ ! -e "$hooks/pre-commit" ]; then
  mkdir -p "$hooks"
  install -m 0755 tools/pre-commit "$hooks/pre-commit"
fi
