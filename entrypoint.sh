#!/bin/sh
# Sets what must be in the environment before Python starts, then becomes the server.
# The same defaults are in runtime/kserve_lmcache/config/environment.py; a test holds the two alike.
set -eu

# vLLM seeds the first hash of a prefix chain from it: replicas that differ never share.
export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"
export LMCACHE_TRACK_USAGE="${LMCACHE_TRACK_USAGE:-false}"
export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}"

exec "${PYTHON:-python3}" -m kserve_lmcache.cli.command "$@"
