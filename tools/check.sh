#!/usr/bin/env bash
# tools/check.sh CHECK...: checks of the whole repository.
#   format     gofmt is clean
#   modules    every module builds by itself (GOWORK=off) and its go.mod asks for Go 1.24.0
#   generated  generated code equals a fresh generation
#   generate   generates again (what `make gen` does)
#   lint       golangci-lint over every module
#   cross      every binary builds for linux/arm64
#   newest     every module builds with the newest installed toolchain
set -euo pipefail
cd "$(dirname "$0")/.."
# TIDEGATE_MODULES narrows the checks that go module by module.
read -r -a modules <<<"$(echo ${TIDEGATE_MODULES:-proto libs services/* e2e})"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/tools"

generate() {
  # buf runs the protobuf generators by these names.
  tools/build.sh buf protoc-gen-go protoc-gen-go-grpc
  (cd proto && PATH="$cache:$PATH" buf lint && PATH="$cache:$PATH" buf generate)
  if git rev-parse -q --verify HEAD~1 >/dev/null && [ -n "$(git ls-tree HEAD~1 proto/buf.yaml)" ]; then
    (cd proto && PATH="$cache:$PATH" buf breaking --against "../.git#ref=HEAD~1,subdir=proto")
  fi
  if command -v clang-14 >/dev/null; then
    (cd libs && go generate ./xdp/... ./loadgen/...)
  elif [ -n "${TIDEGATE_CI:-}" ]; then
    echo "check: clang-14 is missing: BPF code cannot be generated" >&2
    return 1
  else
    echo "check: no clang-14, BPF code is not generated again (install it with 'make setup' as root)"
  fi
}

for check in "$@"; do
  echo "== check: $check"
  case $check in
  format)
    bad=$(git ls-files -z '*.go' | xargs -0 gofmt -l)
    [ -z "$bad" ] || { echo "not formatted (run gofmt -w):"; echo "$bad"; exit 1; }
    ;;
  modules)
    for m in "${modules[@]}"; do
      grep -qx 'go 1.24.0' "$m/go.mod" || { echo "$m/go.mod must say go 1.24.0"; exit 1; }
      (cd "$m" && GOWORK=off go build ./...)
    done
    ;;
  generate) generate ;;
  generated)
    before=$(git ls-files -z '*.pb.go' '*_bpfel.go' '*_bpfel.o' | xargs -0 sha256sum)
    generate
    after=$(git ls-files -z '*.pb.go' '*_bpfel.go' '*_bpfel.o' | xargs -0 sha256sum)
    [ "$before" = "$after" ] || { echo "generated code is out of date: run 'make gen' and commit"; diff <(echo "$before") <(echo "$after") || true; exit 1; }
    ;;
  lint)
    for m in "${modules[@]}"; do (cd "$m" && "$cache/golangci-lint" run --config ../$( [[ $m == services/* ]] && echo ../ ).golangci.yaml ./...); done
    ;;
  cross)
    for p in ./services/tidegate ./services/ingest/cmd/ingest ./services/classify/cmd/classify ./services/enforce/cmd/enforce ./services/persist/cmd/persist ./services/gateway/cmd/gateway; do
      GOOS=linux GOARCH=arm64 go build -trimpath -o /dev/null "$p"
    done
    ;;
  newest)
    for m in "${modules[@]}"; do (cd "$m" && GOTOOLCHAIN=local go vet ./...); done
    ;;
  *) echo "unknown check $check" >&2; exit 2 ;;
  esac
done
