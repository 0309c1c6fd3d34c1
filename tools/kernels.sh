#!/usr/bin/env bash
# Fetches the kernels that TestFullKernels boots into the cache outside the checkout: Debian 12's own and the newest of its
# backports, each a folder with vmlinuz, veth.ko (the tests' interfaces) and version. Nothing is installed and the machine's
# apt sources stay as they are. Where apt cannot fetch, what the cache has stays, and the test says what is missing.
set -euo pipefail
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/kernels"
codename=bookworm
mkdir -p "$cache"/apt/{lists,archives}/partial "$cache/apt/parts"

fetch() {
  # The archive that the machine's own sources name for this release.
  local archive
  archive=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' |
    awk -v c=$codename '$2 == c && $3 == "main" { print $1; exit }')
  [ -n "$archive" ] || { echo "kernels: no apt source of $codename" >&2; return 1; }
  local signed=/usr/share/keyrings/debian-archive-keyring.gpg
  for suite in $codename $codename-backports; do echo "deb [signed-by=$signed] $archive $suite main"; done >"$cache/apt/parts/kernels.list"
  local apt=(-qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$cache/apt/parts" -o Dir::State::lists="$cache/apt/lists"
    -o Dir::Cache="$cache/apt" -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" update
  local kind suite version package work
  for kind in debian backports; do
    suite=$codename
    [ $kind = debian ] || suite=$codename-backports
    version=$(apt-cache "${apt[@]}" madison linux-image-amd64 | awk -F' *\\| *' -v s="$suite/main" 'index($3, s " ") { print $2; exit }')
    [ -n "$version" ] || { echo "kernels: $suite has no linux-image-amd64" >&2; return 1; }
    [ "$(cat "$cache/$kind/version" 2>/dev/null)" != "$version" ] || continue
    package=$(apt-cache "${apt[@]}" show "linux-image-amd64=$version" | sed -n 's/^Depends: \(linux-image-[^ ]*\) .*/\1/p')
    echo "fetching $package"
    work=$(mktemp -d "$cache/$kind.XXXXXX")
    (cd "$work" && apt-get "${apt[@]}" download "$package=$version" && dpkg-deb --fsys-tarfile ./*.deb | tar -x --wildcards './boot/vmlinuz-*' '*/drivers/net/veth.ko*')
    mv "$work"/boot/vmlinuz-* "$work/vmlinuz"
    find "$work" -name 'veth.ko.xz' -exec xz -d {} +
    find "$work" -name 'veth.ko' -exec mv {} "$work/veth.ko.new" \;
    mv "$work/veth.ko.new" "$work/veth.ko"
    echo "$version" >"$work/version"
    rm -rf "$work"/*.deb "$work/boot" "$work/lib" "$work/usr" "${cache:?}/$kind"
    mv "$work" "$cache/$kind"
  done
}

if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
  fetch || echo "kernels: could not fetch, going on with what is in $cache" >&2
else
  echo "kernels: no apt, going on with what is in $cache" >&2
fi
