#!/usr/bin/env bash
# root.sh OUT SUITE [PACKAGE...]: makes OUT, a folder with a minimal Debian SUITE and the packages in it, from
# the distribution's mirror (MIRROR, else what this machine's apt uses). Nothing is started. Needs root and debootstrap. What is
# there already is left as it is, so a second run costs nothing.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: root.sh OUT SUITE [PACKAGE...]" >&2; exit 2; }
out=$1 suite=$2
shift 2
[ -d "$out" ] && exit 0
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -v security | head -n1 || true)}
mkdir -p "$(dirname "$out")"
part=$out.part.$$
trap 'rm -rf "$part"' EXIT
debootstrap --variant=minbase "$suite" "$part" ${mirror:+"$mirror"} >"$out.log" 2>&1 ||
  { tail -n 20 "$out.log"; echo "root.sh: debootstrap of $suite failed, its output is in $out.log" >&2; exit 1; }
# Packages must not start servers: without this file they would.
printf '#!/bin/sh\nexit 101\n' >"$part/usr/sbin/policy-rc.d"
chmod 0755 "$part/usr/sbin/policy-rc.d"
if [ $# -gt 0 ]; then
  # A root that is half made is thrown away, so nothing needs to reach the disk file by file.
  DEBIAN_FRONTEND=noninteractive chroot "$part" apt-get -o Dpkg::Options::=--force-unsafe-io \
    install -y --no-install-recommends "$@" >>"$out.log" 2>&1 ||
    { tail -n 20 "$out.log"; echo "root.sh: $* could not be installed, see $out.log" >&2; exit 1; }
fi
chroot "$part" apt-get clean
rm -rf "$part"/var/lib/apt/lists/* "$part"/var/log/*.log
mv "$part" "$out"
rm -f "$out.log"
