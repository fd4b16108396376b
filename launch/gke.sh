#!/usr/bin/env bash
# Runs mebt_jax.main on TPU slices of a GKE cluster as a JobSet of xpk (pip install xpk):
#   launch/gke.sh NAME --cluster=CLUSTER --type=v5litepod-16 [--slices=2] [--spot] [--zone=Z] [--project=P]
#                 [--restarts=100] [--image=IMAGE] [--dry-run]
#                 -- --config=configs/ucf128.py --workdir=SHARED [flags of mebt_jax.main]
#   launch/gke.sh NAME --cluster=CLUSTER [--zone=Z] [--project=P] --delete | --list
# SHARED is a folder that every host sees, such as a bucket or Filestore that `xpk storage attach` mounted.
# The data must be in such a folder too. Without --image this checkout is copied onto python:3.12 and
# installed at every start; an IMAGE must contain the installed package.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/dry_run.sh
source "$root/launch/dry_run.sh"
name="" type="" slices=1 restarts=100 image="" spot="" action=create
location=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        --type=*) type=${1#*=} ;;
        --slices=*) slices=${1#*=} ;;
        --restarts=*) restarts=${1#*=} ;;
        --image=*) image=${1#*=} ;;
        --cluster=?* | --zone=* | --project=*) location+=("$1") ;;
        --spot) spot=$1 ;;
        --dry-run) dry_run=1 ;;
        --delete) action=delete ;;
        --list) action=list ;;
        -*) fail "$1 is not known; the options are listed at the top of launch/gke.sh" ;;
        *) name=$1 ;;
    esac
    shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "'$name' cannot name a workload; take at most 40 of a-z, 0-9 and -, a letter first"
[[ "${location[*]-}" == *--cluster=* ]] || fail "--cluster is missing; give the name of the GKE cluster"
case $action in
    delete) run exec xpk workload delete --workload="$name" "${location[@]}" ;;
    list) run exec xpk workload list --filter-by-job="$name" "${location[@]}" ;;
esac
[ "$action" = create ] || exit 0
[ -n "$type" ] || fail "--type is missing; give the kind of slice, such as --type=v5litepod-16"
[ $# -gt 1 ] || fail "give the flags of mebt_jax.main after --, such as -- --config=configs/ucf128.py --workdir=SHARED"
shift
[[ " $* " == *" --workdir="* ]] || fail "--workdir is missing among the flags; give a folder that every host sees"

command="python -m mebt_jax.main$(printf ' %q' "$@")"
# A run that got SIGTERM exits with 143 after saving. xpk counts that as a failure of user code, which must be restarted.
# The grace period is the time to save.
options=(--tpu-type="$type" --num-slices="$slices" --max-restarts="$restarts" --restart-on-user-code-failure
    --termination-grace-period-seconds=300)
if [ -n "$spot" ]; then options+=(--spot); fi
if [ -n "$image" ]; then
    options+=(--docker-image="$image")
else
    options+=(--base-docker-image=python:3.12 --script-dir="$root")
    command="pip install -q -e '.[tpu]' && $command"
fi
run exec xpk workload create --workload="$name" "${location[@]}" "${options[@]}" --command="$command"
