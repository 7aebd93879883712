"""What the engine of these flags needs of the container's memory."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kserve_lmcache.config import memory_budget
from kserve_lmcache.config.memory_budget import GIB, Needs
from kserve_lmcache.config.resources import Limit, machine_memory, memory_limit
from kserve_lmcache.errors import IdentityError, UsageError
from kserve_lmcache.identity.weights import weights_bytes

logger = logging.getLogger(__name__)

KV_CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE"
# Flags of vLLM that take host memory on behalf of an accelerator, in GiB: of each worker, or in
# all.
_OF_EACH_WORKER = "cpu_offload_gb"
_IN_ALL = "kv_offloading_size"


def needs_of(
    args: Namespace, device: str, environ: Mapping[str, str], model: Path | None = None
) -> Needs:
    """The needs of an engine, as far as they are known.

    Args:
        args: the server's arguments.
        device: the type of vLLM's device.
        environ: the environment, which may set the size of vLLM's KV cache.
        model: where the model lies, if not where the flags say. A model of a hub lies nowhere
            before it is downloaded: its weights count as none.
    """
    workers = args.tensor_parallel_size * args.pipeline_parallel_size
    engines = getattr(args, "data_parallel_size", None) or 1
    if device != "cpu":
        offloaded = _gib(args, _IN_ALL) + _gib(args, _OF_EACH_WORKER) * workers * engines
        return Needs(device, workers, engines, offloaded=int(offloaded * GIB))
    weights = _weights(model or Path(str(args.model or "")), str(args.dtype))
    needs = Needs(device, workers, engines, weights)
    return Needs(device, workers, engines, weights, _kv_cache(args, environ, needs))


def size_kv_cache(
    args: Namespace, memory: Limit, needs: Needs, environ: Mapping[str, str]
) -> Needs:
    """Size vLLM's KV cache on a CPU by the container's memory, unless the user sized it.

    By default vLLM takes 90% of the machine's memory on a CPU, more than a pod's limit allows.

    Args:
        args: the server's arguments. ``kv_cache_memory_bytes`` is set in place.
        memory: the memory of the container.
        needs: of the server, whose KV cache is ignored.
        environ: the environment, which may set the size.

    Returns:
        The needs with the KV cache.
    """
    if not _is_sized(args, environ):
        without = replace(needs, kv_cache=0)
        args.kv_cache_memory_bytes = memory_budget.default_kv_cache(memory, without)
        args.kv_cache_is_default = True
    return replace(needs, kv_cache=_kv_cache(args, environ, needs))


def refuse_what_cannot_fit(needs: Needs) -> None:
    """Refuse a server that cannot fit into the memory, even without a local tier.

    Raises:
        UsageError: it cannot fit.
    """
    if problem := memory_budget.problem(memory_limit(), needs):
        raise UsageError(str(problem))


def log_memory(needs: Needs, tier_gib: float = 0.0) -> None:
    """Log what the server needs, and a warning where less is left than should be.

    Args:
        needs: of the server.
        tier_gib: size of the local tier.
    """
    memory, tier = memory_limit(), tier_gib * GIB
    text = memory_budget.summary(memory, needs, tier)
    if memory_budget.leaves_too_little(memory, needs, tier):
        logger.warning("Memory: %s. Less than %.0f%% are left", text, 100 * memory_budget.SPARE)
    else:
        logger.info("Memory: %s", text)


def _is_sized(args: Namespace, environ: Mapping[str, str]) -> bool:
    if getattr(args, "kv_cache_is_default", False):
        return False
    return bool(
        args.kv_cache_memory_bytes is not None
        or environ.get(KV_CACHE_GIB)
        or args.gpu_memory_utilization is not None
    )


def _kv_cache(args: Namespace, environ: Mapping[str, str], needs: Needs) -> int:
    """The bytes of vLLM's KV cache in one worker on a CPU; 0 where they are not known yet."""
    if args.kv_cache_memory_bytes is not None:
        return int(args.kv_cache_memory_bytes)
    if (text := environ.get(KV_CACHE_GIB, "")).isdigit() and int(text):
        return int(text) * GIB
    if args.gpu_memory_utilization is None:
        return 0
    # vLLM counts what the worker uses already into its share of the machine.
    used = needs.weights / needs.workers + memory_budget.PROCESSES["cpu"]["worker"] * GIB
    whole = machine_memory() * args.gpu_memory_utilization
    return max(0, int(whole - used))


def _weights(model: Path, dtype: str) -> int:
    if not model.exists():
        return 0
    try:
        return weights_bytes(model, dtype)
    except IdentityError:
        return 0  # vLLM, or the identity of the engine, says what is wrong with the files


def _gib(args: Namespace, name: str) -> float:
    value = getattr(args, name, None)
    return float(value) if isinstance(value, int | float) else 0.0
