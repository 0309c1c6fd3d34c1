#!/usr/bin/env bash
# tools/fuzz.sh TIME [all]: runs every fuzz target of the repository for TIME (for example 5s), or, with "all", for TIME
# seconds in all. FUZZ_PARALLEL is the number of workers, by default as Go chooses.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:?usage: tools/fuzz.sh TIME [all]}
targets=$(grep -roE '^func Fuzz[A-Za-z0-9_]*' --include='*_test.go' libs services | sed 's/func //')
if [ "${2:-}" = all ]; then
  seconds=$(( ${time%s} / $(wc -l <<<"$targets") ))
  time=$(( seconds > 0 ? seconds : 1 ))s
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while IFS=: read -r file target; do
  dir=$(dirname "$file")
  echo "== fuzz $dir $target"
  # The last lines say how much ran; of a failure everything is wanted, for it may not come again.
  if (cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" ${FUZZ_PARALLEL:+-parallel "$FUZZ_PARALLEL"} . </dev/null) >"$log" 2>&1; then
    tail -n 3 "$log"
  else
    cat "$log"
    exit 1
  fi
done <<<"$targets"
