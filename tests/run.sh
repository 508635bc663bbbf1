#!/usr/bin/env bash
# Checks and tests everything on a Debian machine with Rust and a C compiler; installs the Debian packages that the tests
# need. Tests with network faults need root. SOAK=30s makes the long tests longer (15s by default).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each program that a test calls, and the package that holds it.
install_packages() {
    local pair missing=()
    for pair in mosquitto:mosquitto mosquitto_sub:mosquitto-clients ip:iproute2 iptables:iptables ps:procps \
        systemd-analyze:systemd debootstrap:debootstrap; do
        # Administrators' programs may lie outside of a user's PATH.
        PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    # The tests in containers need an engine, which is the administrator's choice; for one that is there, compose.
    if command -v docker >/dev/null; then
        docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 || missing+=(docker-compose)
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    local root=()
    [ "$(id -u)" -eq 0 ] || root=(sudo)
    echo "tests/run.sh: installing ${missing[*]}"
    local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends)
    "${install[@]}" "${missing[@]}" || { "${root[@]}" apt-get update && "${install[@]}" "${missing[@]}"; }
}

# The Python clients that crates/broker/tests/foreign.rs drives, in a virtual environment outside of the tree.
install_clients() {
    local wanted=crates/broker/tests/foreign/requirements.txt
    local folder="${XDG_CACHE_HOME:-$HOME/.cache}/rpicluster-tests"
    if [ -x "$folder/bin/python" ] && cmp -s "$wanted" "$folder/requirements.txt"; then
        return 0
    fi
    echo "tests/run.sh: installing Python clients in $folder"
    python3 -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$folder/requirements.txt"
}

step() {
    echo "tests/run.sh: $*"
    "$@"
}

install_packages
install_clients
export PATH="$PATH:/usr/sbin:/sbin"
step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
RUSTDOCFLAGS=-Dwarnings step cargo doc --workspace --no-deps --locked
skipped=$(mktemp)
trap 'rm -f "$skipped"' EXIT
step cargo test --workspace --locked 2>&1 | tee >(grep '^skipped: ' >"$skipped")
if cargo deny --version >/dev/null 2>&1; then
    step cargo deny check bans licenses sources
else
    echo "skipped: cargo deny is not installed (cargo install --locked cargo-deny)" | tee -a "$skipped"
fi
if [ -s "$skipped" ]; then
    echo "tests/run.sh: not everything ran here:"
    cat "$skipped"
else
    echo "tests/run.sh: all is well"
fi
