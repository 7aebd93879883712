"""What each part of a server takes of the container's memory, and what is left for the defaults.

The processes' figures hold for a small model. A large one takes more for what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from kserve_lmcache.config.resources import ADDRESS_SPACE, Limit
from kserve_lmcache.errors import Problem

GIB = 2**30

# By device, in GiB: one process, or one worker's share of /dev/shm (its message queues). Those of
# the CPU add up to what a pod on a cluster took; the shares were read from single processes. Those
# of the GPU are low estimates: a server is refused for what it takes at least.
PROCESSES: Mapping[str, Mapping[str, float]] = {
    "cpu": {"API process": 0.75, "EngineCore": 0.6, "worker": 0.8, "/dev/shm": 0.05},  # noqa: S108
    "cuda": {"API process": 0.75, "EngineCore": 0.75, "worker": 2.0, "/dev/shm": 0.1},  # noqa: S108
}
_CACHE_SERVER = 0.4  # GiB of its processes, on any device
# Of the memory, for what nobody counts: requests, compilation, the page cache.
SPARE = 0.2
# Of the memory, at most: vLLM's own KV cache on a CPU.
_KV_CACHE_SHARE = 0.25
_LARGEST_KV_CACHE = 4 * GIB
# vLLM's cache and the local tier divide what is left as they divide a large container.
_KV_CACHE_SHARE_OF_REST = 0.625
_SMALLEST_KV_CACHE = GIB // 16
_ROUNDING = GIB / 100


class CacheServer(Enum):
    """The cache server of an engine: its own, or one of the machine, in a memory of its own."""

    OWN = "own"
    SHARED = "shared"


@dataclass(frozen=True)
class Needs:
    """What a server needs besides the local tier. Sizes are in bytes.

    Attributes:
        device: the type of vLLM's device.
        workers: the workers of one engine.
        engines: the engines (data parallelism).
        weights: of one engine, in this memory; 0 where they are not known or elsewhere.
        kv_cache: vLLM's own, of one worker, in this memory.
        offloaded: what flags of vLLM take of this memory on behalf of an accelerator, in all.
        cache_server: the cache server that has the local tier, if any.
    """

    device: str
    workers: int = 1
    engines: int = 1
    weights: int = 0
    kv_cache: int = 0
    offloaded: int = 0
    cache_server: CacheServer | None = None

    @property
    def all_workers(self) -> int:
        """The workers of all engines."""
        return self.workers * self.engines

    def parts(self, tier: float = 0.0) -> dict[str, float]:
        """The bytes of each part by its name; parts of no size are left out.

        Args:
            tier: the local tier, of one worker.
        """
        each = PROCESSES.get(self.device, PROCESSES["cuda"])
        counts = {"API process": 1, "EngineCore": self.engines}
        found = {
            name: size * counts.get(name, self.all_workers) * GIB for name, size in each.items()
        }
        shared_memory = found.pop("/dev/shm")  # noqa: S108
        found |= {
            "weights": self.weights * self.engines,
            "vLLM's KV cache": self.kv_cache * self.all_workers,
            "offloaded by vLLM": self.offloaded,
            "cache server": _CACHE_SERVER * GIB if self.cache_server is CacheServer.OWN else 0,
            "local tier": 0 if self.cache_server is CacheServer.SHARED else tier * self.all_workers,
            "/dev/shm": shared_memory,  # noqa: S108
        }
        return {name: size for name, size in found.items() if size}


def room(memory: Limit, needs: Needs) -> float:
    """The bytes that are left for defaults when the spare part stays free; may be negative."""
    return memory.value * (1 - SPARE) - sum(needs.parts().values())


def default_kv_cache(memory: Limit, needs: Needs) -> int:
    """The default of vLLM's own KV cache in one worker on a CPU, in bytes.

    Args:
        memory: the memory of the container.
        needs: without a KV cache.
    """
    share = min(memory.value * _KV_CACHE_SHARE, _LARGEST_KV_CACHE)
    left = room(memory, needs) * _KV_CACHE_SHARE_OF_REST
    return int(max(min(share, left) / needs.all_workers, _SMALLEST_KV_CACHE))


def problem(memory: Limit, needs: Needs, tier: float = 0.0) -> Problem | None:
    """Why the server cannot fit into the memory; None when it may.

    Args:
        memory: the memory of the container.
        needs: of the server.
        tier: the local tier, of one worker, in bytes.
    """
    parts = needs.parts(tier)
    total = sum(parts.values())
    if total <= memory.value or not _is_shared(memory):
        return None
    message = (
        f"the server needs {total / GIB:.1f} GiB ({listed(parts)}), which is more than "
        f"{memory.value / GIB:.1f} GiB"
    )
    lower = " or ".join(
        flag
        for flag, part in (
            ("max_local_cpu_size", "local tier"),
            ("--kv-cache-memory-bytes", "vLLM's KV cache"),
            ("what vLLM offloads", "offloaded by vLLM"),
        )
        if part in parts
    )
    enough = total / (1 - SPARE) / GIB
    fix = f"Raise the memory limit to {enough:.1f} GiB" + (f", or lower {lower}." if lower else ".")
    return Problem(message, memory.source, fix)


def summary(memory: Limit, needs: Needs, tier: float = 0.0) -> str:
    """What the server needs, on one line."""
    parts = needs.parts(tier)
    return (
        f"the server needs {sum(parts.values()) / GIB:.1f} of {memory.value / GIB:.1f} GiB, "
        f"{memory.source} ({listed(parts)})"
    )


def leaves_too_little(memory: Limit, needs: Needs, tier: float = 0.0) -> bool:
    """Whether less than the spare part of the memory stays free."""
    total = sum(needs.parts(tier).values())
    # The defaults are rounded up.
    return total > memory.value * (1 - SPARE) + _ROUNDING and _is_shared(memory)


def listed(parts: Mapping[str, float]) -> str:
    """The parts on one line, in GiB."""
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())


def _is_shared(memory: Limit) -> bool:
    """Whether the limit is one of all processes together, and of memory that is in use."""
    return memory.source != ADDRESS_SPACE
