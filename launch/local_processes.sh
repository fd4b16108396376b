#!/usr/bin/env bash
# Starts one run as N processes on this machine, to try out what a cluster does:
#   launch/local_processes.sh N --config=configs/demo.py [any flag of mebt_jax.main]
set -euo pipefail
if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/local_processes.sh N --config=FILE [flags of mebt_jax.main]" >&2
    exit 2
fi
processes=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
children=()
trap 'kill "${children[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < processes; i++)); do
    python -m mebt_jax.main --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" "$@" &
    children+=($!)
done
status=0
for child in "${children[@]}"; do
    wait "$child" || status=$?
done
exit "$status"
