#!/usr/bin/env bash
# tools/images.sh [SERVICE...]: builds the images (all of them without arguments) as tidegate/SERVICE:latest and :VERSION.
#   VERSION      default: git describe
#   PLATFORM     linux/amd64 or linux/arm64; default: the engine's own
#   AIR_GAPPED   not empty: makes the base images from distribution packages first (deploy/air-gapped)
# An image whose sources, version and bases are as they were is left as it is. The modules are vendored outside, from this
# machine's module cache, so that the build itself needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."
services=("$@")
[ $# -gt 0 ] || services=(ingest classify enforce persist gateway tidegate)
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo unknown)}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
builder=${BUILDER:-golang:1.24-bookworm}
base=${BASE:-debian:bookworm-slim}
label=io.tidegate.sources

engine=$(tools/engine.sh)
eval "$engine"
# What this script starts, it leaves running: whoever wants it gone calls tools/engine.sh stop.
docker() { "$TIDEGATE_DOCKER" "$@"; }
[ -z "${AIR_GAPPED:-}" ] || deploy/air-gapped/build.sh "$builder" "$base"

# The sources: what the binaries are built of, as it lies in the working tree.
sources() {
  git ls-files -z --cached --others --exclude-standard -- \
    go.work go.work.sum e2e/go.mod e2e/go.sum proto libs services deploy/Dockerfile deploy/Dockerfile.dockerignore \
    ':!*_test.go' ':!*.md' ':!**/testdata/**'
}
key=$({
  sources | xargs -0 sha256sum
  echo "$version ${PLATFORM:-} $builder $base"
  docker image inspect --format '{{.Id}}' "$builder" "$base" 2>/dev/null || true
} | sha256sum | cut -d' ' -f1)

context=
trap '[ -z "$context" ] || rm -rf "$context"' EXIT
for service in "${services[@]}"; do
  image=tidegate/$service
  if [ "$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image:latest" 2>/dev/null)" = "$key" ]; then
    continue
  fi
  if [ -z "$context" ]; then
    context=$(mktemp -d)
    sources | tar --null -T - -c | tar -xC "$context"
    (cd "$context" && go work vendor)
  fi
  echo "building $image"
  docker build --quiet -f "$context/deploy/Dockerfile" --label "$label=$key" \
    --build-arg SERVICE="$service" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --build-arg BUILDER="$builder" --build-arg BASE="$base" ${PLATFORM:+--platform "$PLATFORM"} \
    -t "$image:latest" -t "$image:$version" "$context"
done
