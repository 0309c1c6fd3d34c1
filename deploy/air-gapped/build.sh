#!/usr/bin/env bash
# build.sh [IMAGE...]: makes images under the names that deploy/Dockerfile and compose/ use, from distribution packages and Go
# modules, where no registry can be reached; all of them without arguments. README.md says what each can do.
# An image of that name from somewhere else is left alone, and so is one that was made from the same content. Needs root
# and debootstrap for the roots, Go, and an engine (tools/engine.sh).
set -euo pipefail
cd "$(dirname "$0")"
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin # sudo drops the caller's PATH
tools=../../tools
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tidegate"
label=io.tidegate.air-gapped
slim=debian:bookworm-slim
all=("$slim" golang:1.24-bookworm nats:2.12-alpine postgres:15 mariadb:10.11 mysql:8.4 prom/prometheus:v2.42.0 jaegertracing/all-in-one:1.76.0)
images=("$@")
[ $# -gt 0 ] || images=("${all[@]}")

engine=$($tools/engine.sh)
eval "$engine"
docker() { "$TIDEGATE_DOCKER" "$@"; }

# present IMAGE KEY: whether there is nothing to make.
present() {
  local have
  have=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$1" 2>/dev/null) || return 1
  case $have in
  "$2") return 0 ;;
  "" | "<no value>") echo "$1 is there and was not made here: left as it is" ;;
  *) return 1 ;;
  esac
}

# import IMAGE ROOT SUITE [PACKAGE...]: a root folder of the cache as an image, without what no service reads.
import() {
  local image=$1 root=$cache/roots/$2 key
  shift 2
  key=$(echo "$@" | cat - root.sh | sha256sum | cut -d' ' -f1)
  present "$image" "$key" && return
  echo "making $image"
  # A root that was made of another list is made anew.
  [ ! -e "$root.key" ] || [ "$(cat "$root.key")" = "$key" ] || rm -rf "$root"
  ./root.sh "$root" "$@"
  echo "$key" >"$root.key"
  tar -C "$root" --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' \
    --exclude='./usr/share/locale/*' --exclude='./var/cache/*/*' --exclude='./var/lib/tidegate-db-*' --exclude='./dev/*' -c . |
    docker import --change "LABEL $label=$key" --change 'CMD ["bash"]' - "$image" >/dev/null
}

# build IMAGE FOLDER [FILE...]: FOLDER's Dockerfile, with FILEs beside it in the context.
build() {
  local image=$1 folder=$2 from key context
  shift 2
  from=$(sed -n 's/^FROM //p' "$folder/Dockerfile")
  key=$({
    find "$folder" -type f -print0 | sort -z | xargs -0 sha256sum
    docker image inspect --format '{{.Id}}' "$from"
    for f in "$@"; do [ -d "$f" ] && echo "$f" || sha256sum "$f"; done
  } | sha256sum | cut -d' ' -f1)
  present "$image" "$key" && return
  echo "making $image"
  context=$(mktemp -d)
  cp -r "$folder/." "$context/"
  for f in "$@"; do cp -rL "$f" "$context/"; done
  # The distribution's mirror is reached as this machine reaches it.
  docker build --quiet --network host --label "$label=$key" -t "$image" "$context" >/dev/null || { chmod -R u+w "$context"; rm -rf "$context"; exit 1; }
  chmod -R u+w "$context" # the module cache's files cannot be written
  rm -rf "$context"
}

base() { import $slim bookworm bookworm ca-certificates; }

for image in "${images[@]}"; do
  [ "$image" = $slim ] || base
  case $image in
  debian:bookworm-slim) base ;;
  golang:1.24-bookworm)
    goroot=$(cd ../.. && GOTOOLCHAIN=${GOTOOLCHAIN:-go1.24.13} go env GOROOT)
    build "$image" golang "$goroot"/{VERSION,go.env,bin,lib,pkg,src}
    ;;
  nats:*) $tools/build.sh nats-server && build "$image" nats "$cache/tools/nats-server" ;;
  jaegertracing/all-in-one:*) $tools/build.sh jaeger && build "$image" jaeger "$cache/tools/jaeger" ;;
  postgres:15) build "$image" postgres ;;
  mariadb:10.11) build "$image" mariadb mysql-entrypoint.sh ;;
  mysql:8.4)
    import tidegate/mysql-root:sid mysql-sid sid mysql-server
    build "$image" mysql mysql-entrypoint.sh
    ;;
  prom/prometheus:*) build "$image" prometheus ;;
  *) echo "build.sh: no recipe for $image; there are ${all[*]}" >&2; exit 2 ;;
  esac
done
