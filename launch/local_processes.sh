#!/usr/bin/env bash
# Starts one run as N processes on this machine, to try a run of several processes without a cluster:
#   launch/local_processes.sh [--dry-run] N --config=configs/demo.py [flags of mebt_jax.main]
# SIGTERM or Ctrl-C reaches all of them.
set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "$0")/dry_run.sh"
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    fail "give a number of processes and flags, as in launch/local_processes.sh 2 --config=configs/demo.py"
fi
processes=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
children=()
trap 'kill "${children[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < processes; i++)); do
    run python -m mebt_jax.main --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" "$@" &
    children+=($!)
done
status=0
for child in "${children[@]}"; do
    wait "$child" || status=$?
done
exit "$status"
