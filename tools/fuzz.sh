#!/usr/bin/env bash
# tools/fuzz.sh TIME: runs every fuzz target of the repository for TIME (for example 5s).
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: tools/fuzz.sh TIME}
grep -rlE '^func Fuzz' --include='*_test.go' libs services | while read -r file; do
  dir=$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]*' "$file" | sed 's/func //' | while read -r target; do
    echo "== fuzz $dir $target"
    (cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" . </dev/null | tail -n 2)
  done
done
