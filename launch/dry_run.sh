# Sourced by the launchers. `run [exec] CMD ARG...` runs a command; with dry_run=1 it prints the command
# instead, quoted for a shell.
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

# `fail SENTENCE` prints the problem with its fix, and exits.
fail() {
    echo "$0: $1" >&2
    exit 2
}
