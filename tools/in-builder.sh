#!/usr/bin/env bash
# tools/in-builder.sh COMMAND...: runs a command in the builder image, in this checkout, as the calling user and with this
# machine's module and build caches, so that it neither downloads nor compiles again what is there.
#   BUILDER     default golang:1.24-bookworm
#   AIR_GAPPED  not empty: makes that image from distribution packages first (deploy/air-gapped)
set -euo pipefail
cd "$(dirname "$0")/.."
builder=${BUILDER:-golang:1.24-bookworm}
engine=$(tools/engine.sh)
eval "$engine"
[ -z "${AIR_GAPPED:-}" ] || deploy/air-gapped/build.sh "$builder"
modules=$(go env GOMODCACHE)
compiled=$(go env GOCACHE)
# A worktree's repository lies elsewhere; version and revision come from it.
git=$(realpath "$(git rev-parse --git-common-dir)")
mkdir -p "$modules" "$compiled"
exec "$TIDEGATE_DOCKER" run --rm --network host --user "$(id -u):$(id -g)" -e HOME=/tmp -e GOFLAGS= -e GOMODCACHE=/modules -e GOCACHE=/compiled \
  -v "$modules:/modules" -v "$compiled:/compiled" -v "$git:$git" -v "$PWD:$PWD" -w "$PWD" "$builder" "$@"
