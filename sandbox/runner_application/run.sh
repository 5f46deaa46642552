#!/bin/bash
# Keep the listener running until it says that it is done.
# The listener's own exit code gets out only where RUNNER_MANUALLY_TRAP_SIG is set.

folder="$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)"

hide_code() {
    while true; do
        cp -f "$folder/run-helper.sh.template" "$folder/run-helper.sh"
        "$folder/run-helper.sh" "$@"
        if [[ $? -ne 2 ]]; then
            echo "Exiting runner..."
            exit 0
        fi
        echo "Restarting runner..."
    done
}

pass_code() {
    set -m # a process group for the helper and all it starts
    trap 'kill -INT -- "-$helper"' INT TERM
    while true; do
        cp -f "$folder/run-helper.sh.template" "$folder/run-helper.sh"
        "$folder/run-helper.sh" "$@" &
        helper=$!
        # A signal ends this early, with the signal's code: that is the code that gets out.
        wait "$helper"
        code=$?
        if [[ $code -ne 2 ]]; then
            echo "Exiting runner..."
            trap - INT TERM
            wait "$helper"
            exit "$code"
        fi
        echo "Restarting runner..."
    done
}

if [[ -z "$RUNNER_MANUALLY_TRAP_SIG" ]]; then
    hide_code "$@"
else
    pass_code "$@"
fi
