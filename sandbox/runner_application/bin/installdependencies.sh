#!/bin/bash
# The real application installs its .NET libraries here; this one needs only python3.
if [[ "$(id -u)" != 0 ]]; then
    echo "Need to run with sudo privilege"
    exit 1
fi
command -v python3
