"""The size of the local CPU tier when nobody set one."""

from __future__ import annotations

from kserve_lmcache.errors import ConfigurationError, Problem
from kserve_lmcache.lmcache_config import Setting
from kserve_lmcache.resources import Limit

GIB = 2**30

# On an accelerator the container's memory holds little beside the tier while serving; on a CPU
# it holds the weights and vLLM's own KV cache as well.
_SHARE = {"cuda": 0.4, "cpu": 0.15}
_LARGEST_GIB = 32.0  # pinning more than this at every start takes minutes; ask for it by name
_SMALLEST_GIB = 0.125


def default_size(memory: Limit, device: str, workers: int) -> Setting:
    """``max_local_cpu_size`` of one worker, in GiB: LMCache allocates it once per worker.

    Args:
        memory: what the container may use, in bytes.
        device: ``cpu`` or ``cuda``.
        workers: engine workers that share this container's memory.
    """
    share = _SHARE.get(device, _SHARE["cuda"])
    size = memory.value * share / GIB / workers
    size = round(min(max(size, _SMALLEST_GIB), _LARGEST_GIB), 3)
    divided = f", shared by {workers} workers" if workers > 1 else ""
    source = f"default: {share:.0%} of {memory.value / GIB:.1f} GiB, {memory.source}{divided}"
    return Setting(size, source)


def check_fits(size: Setting, memory: Limit, workers: int) -> None:
    """Refuse a tier that the container cannot hold.

    Raises:
        ConfigurationError: naming the size, its source and the limit.
    """
    total = size.value * workers
    if total * GIB <= memory.value:
        return
    workers_text = f" for each of {workers} workers" if workers > 1 else ""
    raise ConfigurationError(
        [
            Problem(
                f"max_local_cpu_size of {size.value:g} GiB{workers_text} is more than the "
                f"{memory.value / GIB:.1f} GiB of {memory.source}",
                size.source,
                "Ask for less, raise the container's memory limit, or leave it out: the default "
                "is sized from the limit.",
            )
        ]
    )
