#!/usr/bin/env bash
# tools/build.sh TOOL...: builds pinned tools (each a module in tools/) into the cache outside the checkout,
# unless the version built there is the pinned one.
set -euo pipefail
cd "$(dirname "$0")"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/tools"
mkdir -p "$cache"
for tool in "$@"; do
  pin=$(sha256sum "$tool/go.mod" | cut -d' ' -f1)
  [ -x "$cache/$tool" ] && [ "$(cat "$cache/$tool.pin" 2>/dev/null)" = "$pin" ] && continue
  echo "building $tool"
  package=$(cd "$tool" && GOWORK=off go mod edit -json | sed -n '/"Tool"/,/]/s/.*"Path": "\(.*\)".*/\1/p' | head -n1)
  (cd "$tool" && GOWORK=off CGO_ENABLED=0 go build -trimpath -o "$cache/$tool" "$package")
  echo "$pin" >"$cache/$tool.pin"
done
