#!/usr/bin/env bash
# Submits a run to Slurm with one process per GPU, and requeues it when its time is over or it is preempted:
#   launch/slurm.sh [--dry-run] --nodes=2 --gpus-per-node=8 [options of sbatch] -- --config=configs/ucf128.py [flags]
# Inside an allocation (salloc) it starts the run there. All nodes must see this checkout, to which paths are
# relative, and the work directory. `python` is that of the environment that is active where you submit.
set -euo pipefail
# In a job, Slurm runs a copy of this file, and the checkout is the current folder.
[ -f launch/slurm.sh ] || cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/dry_run.sh
source launch/dry_run.sh
options=()
gpus=""
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        --dry-run) dry_run=1 ;;
        --gpus-per-node=*) gpus=${1#*=}; options+=("$1") ;;
        *) options+=("$1") ;;
    esac
    shift
done
[ $# -gt 1 ] || fail "give the flags of mebt_jax.main after --, as in launch/slurm.sh --gpus-per-node=8 -- --config=configs/ucf128.py"
shift

if [ -z "${SLURM_JOB_ID:-}" ]; then
    [[ $gpus =~ ^([a-z0-9_]+:)?[1-9][0-9]*$ ]] || fail "--gpus-per-node is '$gpus'; give the number of GPUs of a node, such as --gpus-per-node=8"
    mkdir -p logs
    # --signal: SIGTERM to every process five minutes before the time is over. The run then saves and exits with 143.
    run exec sbatch --ntasks-per-node="${gpus##*:}" --requeue --signal=TERM@300 --open-mode=append --job-name=mebt_jax \
        --output="logs/%x-%j.log" --chdir="$PWD" "${options[@]}" launch/slurm.sh -- "$@"
    exit 0
fi

# JAX reads its coordinator from Slurm's environment and gives process n of a node GPU n, so each process must see
# all GPUs.
status=0
run srun --kill-on-bad-exit=1 python -m mebt_jax.main "$@" || status=$?
if [ "$status" = 143 ]; then
    echo "The run got SIGTERM and has saved its state; requeueing it." >&2
    run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
