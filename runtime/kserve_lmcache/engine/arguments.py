"""What KServe's flags mean for vLLM's engine."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import MutableMapping
from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from kserve_lmcache.config.resources import cpu_cores, memory_limit
from kserve_lmcache.errors import KServeLMCacheError, UsageError

logger = logging.getLogger(__name__)

_THREADS = "VLLM_CPU_OMP_THREADS_BIND"
_KV_CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE"
_KV_CACHE_SHARE = 0.25
_KV_CACHE_LARGEST = 4 * 2**30  # bytes


def device() -> str:
    """The device that vLLM computes on: ``cuda``, ``cpu``, …"""
    return str(current_platform.device_type)


def resolve_engine_arguments(args: Namespace, environ: MutableMapping[str, str]) -> None:
    """Complete ``args`` and ``environ`` in place; what the user set stays as it is.

    Raises:
        UsageError: there is no model to load.
    """
    args.model = _model(args)
    if args.model_revision is not None:
        args.revision = args.model_revision
    if args.served_model_name is None:
        args.served_model_name = [args.model_name]
    else:
        args.model_name = args.served_model_name[0]
    if args.port is not None:
        args.http_port = args.port
    if args.disable_log_requests:
        args.enable_log_requests = False
    if args.tensor_parallel_size is None:
        args.tensor_parallel_size = max(1, torch.cuda.device_count()) if device() == "cuda" else 1
    if device() == "cpu":
        # vLLM cannot load what its ahead-of-time compilation saved on a CPU (torch 2.13: "no
        # attribute 'finalize_loading'") and compiles anew at every start; its older cache works.
        environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
        _bind_threads(args, environ)
        _size_kv_cache(args, environ)
    if args.gpu_memory_utilization is None:
        args.gpu_memory_utilization = AsyncEngineArgs.gpu_memory_utilization


def create_engine_config(args: Namespace) -> VllmConfig:
    """vLLM's configuration of the engine that ``args`` ask for.

    Raises:
        KServeLMCacheError: vLLM refuses them, or cannot read the model's configuration.
    """
    try:
        return AsyncEngineArgs.from_cli_args(args).create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER
        )
    except Exception as error:
        logger.debug("vLLM's own error", exc_info=True)
        raise KServeLMCacheError(f"vLLM refuses the engine's arguments: {error}") from error


def _model(args: Namespace) -> str:
    named = args.model_id or args.model_tag or args.model
    if named:
        return str(named)
    if not Path(args.model_dir).is_dir():
        raise UsageError(
            f"there is no model: --model_id is not given and --model_dir={args.model_dir} "
            "is not a directory. Give --model_id, or a storageUri in the InferenceService."
        )
    return str(args.model_dir)


def _bind_threads(args: Namespace, environ: MutableMapping[str, str]) -> None:
    """Compute on every core that the container may use.

    vLLM's automatic binding keeps cores back and leaves one thread on a 2-core machine, which
    makes prefill half as fast.
    """
    if environ.get(_THREADS):
        return
    cores, reason = cpu_cores()
    workers = args.tensor_parallel_size * args.pipeline_parallel_size
    shares = [cores[worker::workers] or [cores[worker % len(cores)]] for worker in range(workers)]
    environ[_THREADS] = "|".join(",".join(map(str, share)) for share in shares)
    logger.info("Computing on CPU cores %s (%s)", environ[_THREADS], reason)


def _size_kv_cache(args: Namespace, environ: MutableMapping[str, str]) -> None:
    """Keep vLLM's own KV cache within the container.

    vLLM takes 90% of the *machine's* memory on a CPU, which ends a pod with a limit.
    """
    if args.kv_cache_memory_bytes is not None or environ.get(_KV_CACHE_GIB):
        return
    if args.gpu_memory_utilization is not None:
        return
    memory = memory_limit()
    args.kv_cache_memory_bytes = int(min(memory.value * _KV_CACHE_SHARE, _KV_CACHE_LARGEST))
    logger.info(
        "vLLM's KV cache: %.2f GiB (%.0f%% of %s, at most 4 GiB)",
        args.kv_cache_memory_bytes / 2**30,
        _KV_CACHE_SHARE * 100,
        memory.source,
    )
