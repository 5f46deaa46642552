#!/bin/bash
# Wait so many seconds.
sleep "${1:-1}"
