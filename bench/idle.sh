#!/usr/bin/env bash
# What a process takes at rest: idle.sh PID [SECONDS]. Prints resident memory (MiB, anonymous and of files) and the share of
# one core over the seconds (60 unless given).
set -euo pipefail
pid=$1 secs=${2:-60} hz=$(getconf CLK_TCK)
ticks() { sed 's/.*) //' "/proc/$pid/stat" | awk '{print $12 + $13}'; }
before=$(ticks)
sleep "$secs"
after=$(ticks)
awk -v t=$((after - before)) -v hz="$hz" -v s="$secs" 'BEGIN { printf "cpu %.2f %% of a core over %d s\n", 100 * t / hz / s, s }'
awk '/^(VmRSS|RssAnon|RssFile):/ { printf "%s %.1f MiB\n", tolower($1), $2 / 1024 }' "/proc/$pid/status"
