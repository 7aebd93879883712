#!/bin/sh
# Sets what must be in the environment before Python starts, then becomes the server.
# The same defaults are in runtime/kserve_lmcache/config/environment.py; a test holds the two alike.
set -eu

# vLLM seeds the first hash of a prefix chain from it: replicas that differ never share.
export PYTHONHASHSEED="${PYTHONHASHSEED:-0}"
export LMCACHE_TRACK_USAGE="${LMCACHE_TRACK_USAGE:-false}"
export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}"

# The processes of the server keep their counters here. Files of an earlier start are removed.
if [ -n "${PROMETHEUS_MULTIPROC_DIR:-}" ]; then
    mkdir -p "$PROMETHEUS_MULTIPROC_DIR" 2>/dev/null || true
    rm -f "$PROMETHEUS_MULTIPROC_DIR"/*.db
# The server itself says why a directory cannot be used, and what to do.
elif directory="$(mktemp -d "${TMPDIR:-/tmp}/kserve-lmcache-metrics.XXXXXX" 2>/dev/null)"; then
    export PROMETHEUS_MULTIPROC_DIR="$directory"
fi

exec "${PYTHON:-python3}" -m kserve_lmcache "$@"
