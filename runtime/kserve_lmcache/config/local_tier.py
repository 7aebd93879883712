"""The local CPU tier's size: a default that fits the container, and checks of any other."""

from __future__ import annotations

from collections.abc import Iterator

from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.remote_tier import uses_remote_tier
from kserve_lmcache.config.resources import Limit
from kserve_lmcache.errors import Problem

GIB = 2**30

# On an accelerator the container's memory holds little beside the tier while serving; on a CPU
# it holds the weights and vLLM's own KV cache as well.
_SHARE = {"cuda": 0.4, "cpu": 0.15}
_LARGEST_GIB = 32.0  # pinning more than this at every start takes minutes; ask for it by name
_SMALLEST_GIB = 0.125
# The longest request may take this much of the memory before the default gives up on it.
_LARGEST_SHARE_OF_REQUEST = 0.5


def default_size(memory: Limit, device: str, workers: int, request_bytes: int = 0) -> Value:
    """``max_local_cpu_size`` of one worker, in GiB: LMCache allocates it once per worker.

    Args:
        memory: what the container may use, in bytes.
        device: ``cpu`` or ``cuda``.
        workers: engine workers that share this container's memory.
        request_bytes: KV of the longest request in one worker; 0 when it is not known.
    """
    share = _SHARE.get(device, _SHARE["cuda"])
    size = min(memory.value * share / GIB / workers, _LARGEST_GIB)
    reason = f"{share:.0%} of {memory.value / GIB:.1f} GiB, {memory.source}"
    request = request_bytes / GIB
    if size < request <= memory.value * _LARGEST_SHARE_OF_REQUEST / GIB / workers:
        size, reason = request, f"one request of the longest length; {reason}, is less"
    size = round(max(size, _SMALLEST_GIB) + 0.0005, 3)
    divided = f", shared by {workers} workers" if workers > 1 else ""
    return Value(size, f"default: {reason}{divided}")


def check(configuration: Configuration, memory: Limit, shape: EngineShape) -> None:
    """Add what is wrong with the tier's size to the configuration's problems and notes."""
    configuration.problems += _problems(configuration, memory, shape)
    size = configuration.get("max_local_cpu_size") * GIB
    requests = size / shape.request_bytes
    if requests < shape.max_num_seqs and _loads_into_tier(configuration):
        configuration.notes.append(
            f"max_local_cpu_size of {size / GIB:g} GiB holds {requests:.1f} requests of "
            f"{shape.max_model_len} tokens ({shape.kv_bytes_per_token} bytes each), and "
            f"--max-num-seqs lets {shape.max_num_seqs} run: when more load at a time than fit, "
            "they wait for each other"
        )


def _problems(configuration: Configuration, memory: Limit, shape: EngineShape) -> Iterator[Problem]:
    size = configuration.get("max_local_cpu_size")
    source = configuration.source("max_local_cpu_size")
    if not 0 < size < float("inf"):  # refused already
        return
    if size * shape.workers * GIB > memory.value:
        each = f" for each of {shape.workers} workers" if shape.workers > 1 else ""
        yield Problem(
            f"max_local_cpu_size of {size:g} GiB{each} is more than the "
            f"{memory.value / GIB:.1f} GiB of {memory.source}",
            source,
            "Ask for less, raise the container's memory limit, or leave it out: the default "
            "is sized from the limit.",
        )
    if size * GIB < shape.request_bytes and _loads_into_tier(configuration):
        yield Problem(
            f"max_local_cpu_size of {size:g} GiB is less than one request of "
            f"{shape.max_model_len} tokens ({shape.request_bytes / GIB:.2f} GiB): LMCache would "
            "wait for ever to load it",
            source,
            "Raise it (and the container's memory limit), or lower --max-model-len.",
        )
    chunk_size = configuration.get("chunk_size")
    if chunk_size > 0 and chunk_size % shape.block_size:
        yield Problem(
            f"chunk_size of {chunk_size} is no multiple of vLLM's block size {shape.block_size}",
            configuration.source("chunk_size"),
            f"Use {max(1, round(chunk_size / shape.block_size)) * shape.block_size}, or set "
            "--block-size.",
        )


def _loads_into_tier(configuration: Configuration) -> bool:
    """Whether chunks that LMCache loads pass through this tier, waiting until it has room."""
    return bool(configuration.get("remote_url")) and not uses_remote_tier(configuration)
