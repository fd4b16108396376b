#!/usr/bin/env bash
# Runs mebt_jax.main on the GPUs of this machine; one process uses all of them, as JAX needs it on one node:
#   launch/one_node.sh [--dry-run] [--gpus=0,1,2,3] --config=configs/ucf128.py [flags of mebt_jax.main]
# Without --gpus all GPUs are used. At SIGTERM the run saves its state; the same command goes on from there.
set -euo pipefail
# shellcheck source=launch/dry_run.sh
source "$(dirname "$0")/dry_run.sh"
gpus=""
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry_run=1 ;;
        --gpus=*) gpus=${1#*=} ;;
        *) break ;;
    esac
    shift
done
[ $# -gt 0 ] || fail "give the flags of mebt_jax.main, such as --config=configs/ucf128.py"
if [ -z "$gpus" ]; then
    command -v nvidia-smi >/dev/null || fail "nvidia-smi is missing, so there is no GPU driver here; install it, or name the GPUs with --gpus=0,1"
    gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)
    [ -n "$gpus" ] || fail "nvidia-smi lists no GPU; check the driver"
fi
echo "GPUs $gpus" >&2
# JAX's default is three quarters of a GPU's memory. With exec, signals go to the run itself.
run exec env CUDA_VISIBLE_DEVICES="$gpus" XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}" \
    python -m mebt_jax.main "$@"
