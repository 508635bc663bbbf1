#!/usr/bin/env bash
# Fuzzes with every target of fuzz/, each for FUZZ (20s by default), on its committed corpus, which lies in the crate that
# it is about (crates/*/tests/corpus), and what earlier runs found (target/fuzz/corpus). FUZZ=7m makes it long. Installs cargo-fuzz into target/tools if there is none.
# "tests/fuzz.sh NAME …" runs only these targets; MINIMIZE=1 then makes the committed corpora anew from what was found.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The sanitizers are options of an unstable compiler; the stable one has them too when told so.
export RUSTC_BOOTSTRAP=1
export PATH="$PWD/target/tools/bin:$PATH"
command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz --root target/tools

# Bytes of a committed corpus, and of one of its inputs.
corpus_bytes_max=40000
input_bytes_max=1200
fuzz="${FUZZ:-20s}"
case "$fuzz" in
    *m) seconds=$((${fuzz%m} * 60)) ;;
    *s) seconds="${fuzz%s}" ;;
    *) echo "tests/fuzz.sh: FUZZ=$fuzz: must be like 20s or 7m" >&2 && exit 64 ;;
esac
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' fuzz/Cargo.toml | tail -n +2)

# Where the committed corpus of a target lies.
corpus_of() {
    local found=(crates/*/tests/corpus/"$1")
    if [ ${#found[@]} -ne 1 ] || [ ! -d "${found[0]}" ]; then
        echo "tests/fuzz.sh: $1 must have one corpus, not: ${found[*]}" >&2
        exit 1
    fi
    echo "${found[0]}"
}

# A broker keeps memory from one input to the next, which libFuzzer takes for a leak each time: leaks are looked for at the
# end of a run, by LeakSanitizer.
run() {
    local target="$1" found="target/fuzz/corpus/$1" kept log
    kept="$(corpus_of "$target")"
    log="$(mktemp)"
    mkdir -p "$found" target/fuzz/artifacts
    cargo fuzz run --fuzz-dir fuzz --target-dir target/fuzz "$target" "$found" "$kept" -- \
        -max_total_time="$seconds" -max_len=2048 -timeout=30 -rss_limit_mb=1024 -detect_leaks=0 -print_final_stats=1 \
        -artifact_prefix="target/fuzz/artifacts/$target-" 2>&1 | tee "$log"
    local runs coverage
    runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    coverage="$(sed -n 's/.*DONE *cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log")"
    echo "figure: fuzzing $target for $fuzz: $runs runs, $coverage"
    rm -f "$log"
}

# The smallest inputs that reach what all together reach, as many of them as fit.
minimize() {
    local target="$1" small="target/fuzz/small/$1" kept bytes=0 size name
    kept="$(corpus_of "$target")"
    rm -rf "$small" && mkdir -p "$small"
    cargo fuzz run --fuzz-dir fuzz --target-dir target/fuzz "$target" "$small" "target/fuzz/corpus/$target" "$kept" -- \
        -merge=1 -max_len="$input_bytes_max" -timeout=30 -rss_limit_mb=1024 -detect_leaks=0
    rm -f "$kept"/*
    while read -r size name; do
        bytes=$((bytes + size))
        [ "$bytes" -le "$corpus_bytes_max" ] || break
        cp "$small/$name" "$kept/"
    done < <(find "$small" -type f -size -"$input_bytes_max"c -printf '%s %f\n' | shuf --random-source=/dev/zero)
}

for target in "${targets[@]}"; do
    run "$target"
    [ -z "${MINIMIZE:-}" ] || minimize "$target"
done
