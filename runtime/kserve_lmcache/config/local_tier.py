"""The size of the local CPU tier: a default that fits the container, and a check of other sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kserve_lmcache.compat.vllm import least_shared_memory
from kserve_lmcache.config import memory_budget
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.directories import Directory, fault_of
from kserve_lmcache.config.engine_shape import EngineShape
from kserve_lmcache.config.memory_budget import Needs
from kserve_lmcache.config.remote_tier import uses_remote_tier
from kserve_lmcache.config.resources import Limit

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

# The tier's share of the container's memory. With an accelerator, that memory holds little else
# during serving. On a CPU, it holds the weights and vLLM's own KV cache as well.
_SHARE = {"cuda": 0.4, "cpu": 0.15}
_LARGEST_DEFAULT_GIB = 32.0  # pinning more memory takes minutes at every start
# Of what is free in /dev/shm: other processes of the container may use it as well.
_SHARE_OF_SHARED_MEMORY = 0.9
_SMALLEST_DEFAULT_GIB = 0.125
# The default holds the longest request when that takes at most this share of the memory.
_LARGEST_SHARE_OF_REQUEST = 0.5


def default_size(
    memory: Limit, needs: Needs, request_bytes: int = 0, shared_memory: int | None = None
) -> Value:
    """The default of ``max_local_cpu_size`` in GiB. LMCache allocates the size in each worker.

    Args:
        memory: the memory of the container, in bytes.
        needs: what the server needs besides the tier.
        request_bytes: the KV of the longest request in one worker. 0 when it is not known.
        shared_memory: what is free in ``/dev/shm`` for a cache server; ``None`` without one.
    """
    workers = needs.all_workers
    share = _SHARE.get(needs.device, _SHARE["cuda"])
    size = min(memory.value * share / GIB / workers, _LARGEST_DEFAULT_GIB)
    reason = f"{share:.0%} of {memory.value / GIB:.1f} GiB, {memory.source}"
    room = memory_budget.room(memory, needs) / GIB / workers
    if room < size:
        size, reason = (
            room,
            f"what the server leaves of {memory.value / GIB:.1f} GiB, "
            + (f"less {memory_budget.SPARE:.0%}, {memory.source}"),
        )
    request = request_bytes / GIB
    if size < request <= min(room, memory.value * _LARGEST_SHARE_OF_REQUEST / GIB / workers):
        size, reason = request, f"one request of the longest length, more than {reason}"
    if shared_memory is not None and (most := shared_memory / GIB / workers) < size:
        size, reason = most, f"what is free of {SHARED_MEMORY}"
    size = round(max(size, _SMALLEST_DEFAULT_GIB) + 0.0005, 3)
    shared = f", shared by {workers} workers" if workers > 1 else ""
    return Value(size, f"default: {reason}{shared}")


def check(configuration: Configuration, memory: Limit, shape: EngineShape) -> None:
    """Add the problems and notes of the tier's size and of the size of a chunk."""
    size = configuration.get("max_local_cpu_size")
    if 0 < size < float("inf"):  # the rules refuse other sizes
        _check_size(configuration, size, memory, shape)
    chunk_size = configuration.get("chunk_size")
    if chunk_size > 0 and chunk_size % shape.block_size:
        nearest = max(1, round(chunk_size / shape.block_size)) * shape.block_size
        configuration.add_problem(
            "chunk_size",
            f"of {chunk_size} is no multiple of vLLM's block size {shape.block_size}",
            f"Use {nearest}, or set --block-size.",
        )


def free_shared_memory(environ: Mapping[str, str]) -> int:
    """The bytes of ``/dev/shm`` that vLLM's queues leave to a cache server."""
    state = os.statvfs(SHARED_MEMORY)
    free = state.f_bavail * state.f_frsize
    return max(0, int(_SHARE_OF_SHARED_MEMORY * (free - least_shared_memory(environ))))


def check_shared_memory(
    configuration: Configuration, workers: int, environ: Mapping[str, str]
) -> None:
    """Add the problem of a cache server's memory that does not fit into ``/dev/shm``.

    Args:
        configuration: complete.
        workers: of all engines.
        environ: may set what vLLM's queues need there.
    """
    size = int(configuration.get("max_local_cpu_size") * workers * GIB)
    needed = Directory(
        "the local tier and the queues between vLLM's processes",
        SHARED_MEMORY,
        least_free=size + least_shared_memory(environ),
    )
    if found := fault_of(needed):
        configuration.add_problem(
            "max_local_cpu_size",
            f"does not fit: {found.message}",
            "Mount more memory at /dev/shm (docker run --shm-size; in Kubernetes an emptyDir with "
            "medium: Memory), lower max_local_cpu_size, or use mode=in-process.",
        )


def _check_size(
    configuration: Configuration, size: float, memory: Limit, shape: EngineShape
) -> None:
    if size * shape.workers * GIB > memory.value:
        each = f" for each of {shape.workers} workers" if shape.workers > 1 else ""
        configuration.add_problem(
            "max_local_cpu_size",
            f"of {size:g} GiB{each} is more than the {memory.value / GIB:.1f} GiB of "
            f"{memory.source}",
            "Lower max_local_cpu_size, raise the container's memory limit, or remove "
            "max_local_cpu_size: the default fits the limit.",
        )
    # LMCache's own connector loads chunks into this tier and waits until the tier has room.
    if not configuration.get("remote_url") or uses_remote_tier(configuration):
        return
    if size * GIB < shape.request_bytes:
        configuration.add_problem(
            "max_local_cpu_size",
            f"of {size:g} GiB is less than one request of {shape.max_model_len} tokens "
            f"({shape.request_bytes / GIB:.2f} GiB): LMCache would wait for ever to load the "
            "request",
            "Raise max_local_cpu_size and the container's memory limit, or lower --max-model-len.",
        )
    requests = size * GIB / shape.request_bytes
    if requests < shape.max_num_seqs:
        configuration.notes.append(
            f"max_local_cpu_size of {size:g} GiB holds {requests:.1f} requests of "
            f"{shape.max_model_len} tokens ({shape.kv_bytes_per_token} bytes each), and "
            f"--max-num-seqs lets {shape.max_num_seqs} run. Further loads wait for each other"
        )
