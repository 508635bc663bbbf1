#!/usr/bin/env bash
# Runs the integration tests at full length with a release build (SOAK, 30s by default; full load for SOAK_BROKER, 30m; abuse
# for SOAK_ABUSE, 5m; SOAK_TASKS, 2000, through crashes; SOAK_INPUTS, 100000, of one map), then SIMULATOR_SEEDS (100000) of the
# simulator and each fuzz target for FUZZ (7m), and appends what was measured to docs/measured.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export SOAK="${SOAK:-30s}" SOAK_BROKER="${SOAK_BROKER:-30m}" SOAK_ABUSE="${SOAK_ABUSE:-5m}"
export SOAK_TASKS="${SOAK_TASKS:-2000}" SOAK_INPUTS="${SOAK_INPUTS:-100000}"

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cargo test --release --locked -p rpicluster --test integration -- --nocapture "$@" | tee "$log"
SIMULATOR_SEEDS="${SIMULATOR_SEEDS:-100000}" \
    cargo test --release --locked -p rpicluster-core --test simulator -- --nocapture | tee -a "$log"
FUZZ="${FUZZ:-7m}" tests/fuzz.sh 2>&1 | tee -a "$log"

commit="$(git rev-parse --short=12 HEAD)"
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit="$commit with changes"
processor="$(sed -n 's/^model name[^:]*: //p; s/^Model[^:]*: //p' /proc/cpuinfo | head -n 1)"
[ -e docs/measured.md ] || printf '# Measured\n' >docs/measured.md
{
    printf '\n## Soak of %s\n\n' "$(date -u +%Y-%m-%d)"
    printf -- '- commit: %s\n- machine: %s, %s cores, %s\n- SOAK: %s, SOAK_BROKER: %s, SOAK_ABUSE: %s\n' \
        "$commit" "${processor:-unknown processor}" "$(nproc)" "$(uname -srm)" "$SOAK" "$SOAK_BROKER" "$SOAK_ABUSE"
    printf -- '- SOAK_TASKS: %s, SOAK_INPUTS: %s\n' "$SOAK_TASKS" "$SOAK_INPUTS"
    sed -n 's/^.*figure: /- /p; s/^test result: /- tests: /p' "$log"
} >>docs/measured.md
echo "tests/soak.sh: appended to docs/measured.md"
