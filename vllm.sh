#!/bin/sh
# The command `vllm` of the image, in front of vLLM's own on PATH: KServe's LLMInferenceService starts
# `vllm serve`. runtime/kserve_lmcache/cli/vllm_command.py says what becomes of each command.
set -eu

exec "${PYTHON:-python3}" -m kserve_lmcache.cli.vllm_command "$@"
