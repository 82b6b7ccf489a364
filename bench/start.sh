#!/usr/bin/env bash
# From nothing to the hello workload answering, and what the control plane takes afterwards. Runs `cargo xtask up` (see its
# --help for what it changes), waits for things to settle, measures for a minute, and removes the cluster again.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo xtask up | grep -E ' s  |answers'
pid=$(cat target/trial/kelson.pid)
sleep 20
bench/idle.sh "$pid" 60
cargo xtask down
