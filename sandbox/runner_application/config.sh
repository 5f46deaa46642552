#!/bin/bash
# Register this machine as a runner, or with "remove" take the registration back.

if [[ "$(id -u)" == 0 && -z "$RUNNER_ALLOW_RUNASROOT" ]]; then
    echo "Must not run with sudo"
    exit 1
fi

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
source ./env.sh

if [[ "$1" == remove ]]; then
    exec ./bin/Runner.Listener "$@"
fi
exec ./bin/Runner.Listener configure "$@"
