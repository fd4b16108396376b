#!/usr/bin/env bash
# Runs mebt_jax.main on every host of a Cloud TPU slice. It requests the slice and waits for it, or reuses the
# slice of that name; installs this checkout; runs, and copies the log to logs/ here; and after a preemption
# requests a new slice and continues the run.
#   launch/tpu_pod.sh NAME --zone=ZONE --type=v5litepod-16 [--spot] [--project=P] [--runtime=VERSION]
#                     [--setup=CMD] [--dry-run]
#                     -- --config=configs/ucf128.py --workdir=SHARED [flags of mebt_jax.main]
#   launch/tpu_pod.sh NAME --zone=ZONE [--project=P] --delete
# SHARED and the data are folders that every host sees, relative to ~/mebt_jax there. CMD runs on each host
# before the run and may mount them; with this one, --workdir=../shared/ucf128 is such a folder:
#   --setup='mkdir -p ~/shared && { mountpoint -q ~/shared ||
#            gcsfuse --implicit-dirs --rename-dir-limit=100000 BUCKET ~/shared; }'
# The slice stays, and costs, until --delete.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=launch/dry_run.sh
source "$root/launch/dry_run.sh"
name="" zone="" type="" runtime="" setup=true spot="" action=run
location=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
        --zone=*) zone=${1#*=}; location+=("$1") ;;
        --project=*) location+=("$1") ;;
        --type=*) type=${1#*=} ;;
        --runtime=*) runtime=${1#*=} ;;
        --setup=*) setup=${1#*=} ;;
        --spot) spot=$1 ;;
        --dry-run) dry_run=1 ;;
        --delete) action=delete ;;
        -*) fail "$1 is not known; the options are listed at the top of launch/tpu_pod.sh" ;;
        *) name=$1 ;;
    esac
    shift
done
poll=${TPU_POD_POLL_SECONDS:-30}
max_failures=3 # in a row, on a slice that stays; preemptions do not count

[ -n "$name" ] || fail "the name of the slice is missing, as in launch/tpu_pod.sh my-run --zone=us-central1-a --type=v5litepod-16 -- ..."
[ -n "$zone" ] || fail "--zone is missing, such as --zone=us-central1-a"
queued=(gcloud compute tpus queued-resources)
if [ "$action" = delete ]; then
    run exec "${queued[@]}" delete "$name" "${location[@]}" --force --quiet
    exit 0
fi
[ -n "$type" ] || fail "--type is missing, such as --type=v5litepod-16"
[ $# -gt 1 ] || fail "give the flags of mebt_jax.main after --, such as -- --config=configs/ucf128.py --workdir=SHARED"
shift
[[ " $* " == *" --workdir="* ]] || fail "--workdir is missing among the flags; give a folder that every host sees"
git -C "$root" rev-parse 2>/dev/null || fail "$root is not a git checkout, which lists the files to send to the hosts; git clone the project"
if [ -z "$runtime" ]; then
    case $type in
        v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
        v5p-*) runtime=v2-alpha-tpuv5 ;;
        v6e-*) runtime=v2-alpha-tpuv6e ;;
        v4-*) runtime=tpu-ubuntu2204-base ;;
        *) fail "no runtime version is known for $type; give --runtime=VERSION" ;;
    esac
fi

state() { # state of the request: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ..., or MISSING
    "${queued[@]}" describe "$name" "${location[@]}" --format='value(state.state)' 2>/dev/null || echo MISSING
}

create() {
    local options=(--accelerator-type="$type" --runtime-version="$runtime")
    if [ -n "$spot" ]; then options+=(--spot); fi
    run "${queued[@]}" create "$name" --node-id="$name" "${location[@]}" "${options[@]}"
}

wait_for_slice() { # returns when the slice is active; renews a request that failed or has lost its slice
    local now
    if [ "${dry_run:-0}" = 1 ]; then
        create
        return
    fi
    while true; do
        now=$(state)
        case $now in
            ACTIVE) return ;;
            MISSING) create ;;
            SUSPENDED | FAILED)
                echo "$name is $now; requesting it again" >&2
                run "${queued[@]}" delete "$name" "${location[@]}" --force --quiet
                ;;
            *)
                echo "$name is $now" >&2
                sleep "$poll"
                ;;
        esac
    done
}

on_all_hosts() { run gcloud compute tpus tpu-vm ssh "$name" "${location[@]}" --worker=all --command="$1"; }

install() {
    local package
    package=$(mktemp -d)/mebt_jax.tar.gz
    (cd "$root" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done | tar czf "$package" --null -T -) || return
    run gcloud compute tpus tpu-vm scp "$package" "$name:mebt_jax.tar.gz" "${location[@]}" --worker=all || return
    rm -r "$(dirname "$package")"
    # uv installs a recent Python; the images have 3.10.
    # shellcheck disable=SC2016  # $HOME and $PATH are those of the hosts
    on_all_hosts 'set -e; export PATH=$HOME/.local/bin:$PATH; mkdir -p mebt_jax; tar xzf mebt_jax.tar.gz -C mebt_jax; cd mebt_jax
command -v uv >/dev/null || python3 -m pip install -q --user uv
uv venv -q --allow-existing --python 3.12 .venv; uv pip install -q --python .venv/bin/python -e ".[tpu]"; '"$setup"
}

# A run that a broken connection left behind occupies the chips: SIGTERM makes it save and exit. The pattern matches a Python
# at the start of the command line, since the command line of the searching shell contains the words too.
leftover="'^[^ ]*python[0-9.]* -m mebt_jax[.]main'"
start="cd mebt_jax; pkill -TERM -f $leftover; while pgrep -f $leftover >/dev/null; do sleep 1; done
exec .venv/bin/python -m mebt_jax.main$(printf ' %q' "$@")"
failures=0
if [ "${dry_run:-0}" = 1 ]; then
    wait_for_slice
    install
    on_all_hosts "$start"
    exit 0
fi
mkdir -p "$root/logs"
while true; do
    wait_for_slice
    status=0
    { install && on_all_hosts "$start"; } 2>&1 | tee -a "$root/logs/$name.log" || status=$?
    [ "$status" = 0 ] && exit 0
    [ "$status" = 2 ] && fail "the run says what to change, above; the slice stays until --delete"
    if [ "$(state)" = ACTIVE ]; then
        failures=$((failures + 1))
        [ "$failures" -lt "$max_failures" ] || fail "the run failed $failures times in a row, see logs/$name.log; the slice stays until --delete"
    else
        failures=0
    fi
    echo "The run ended with status $status; going on from its last checkpoint" >&2
    sleep "$poll"
done
