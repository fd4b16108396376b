# Sourced by the launchers. `run [exec] CMD ARG...` runs a command; with dry_run=1 it prints it instead, quoted for a shell.
# shellcheck shell=bash
run() {
    if [ "${dry_run:-0}" = 1 ]; then
        if [ "$1" = exec ]; then shift; fi
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

# `fail SENTENCE` says what to do differently and leaves.
fail() {
    echo "$0: $1" >&2
    exit 2
}
