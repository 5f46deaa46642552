#!/bin/bash
# Keep what a service would need of the environment in which the runner is configured.

if [[ ! -f .env ]]; then
    : > .env
    for name in LANG JAVA_HOME ANT_HOME M2_HOME ANDROID_HOME GRADLE_HOME NVM_BIN NVM_PATH LD_LIBRARY_PATH PERL5LIB; do
        [[ -n "${!name}" ]] && echo "$name=${!name}" >> .env
    done
fi
echo "$PATH" > .path
