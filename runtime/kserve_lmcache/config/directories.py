"""The directories that the server writes to, and their check before the engine starts.

A directory that does not exist yet is judged by its nearest parent that exists.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from kserve_lmcache.compat import vllm
from kserve_lmcache.config.metrics_directory import VARIABLE as METRICS_VARIABLE
from kserve_lmcache.config.resources import execute_error, nearest_existing, write_error
from kserve_lmcache.errors import DirectoryError, Problem

_MIB = 2**20
_TEMPORARY = "/tmp"  # noqa: S108
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Fault(StrEnum):
    """What is wrong with a directory."""

    NO_DIRECTORY = "is no directory"
    UNWRITABLE = "cannot be written"
    FULL = "is full"
    NO_EXECUTION = "does not allow the execution of files (it is mounted noexec)"


_FIXES = {
    Fault.NO_DIRECTORY: "Remove the file",
    Fault.UNWRITABLE: "Mount a volume there that this user may write (docker run --tmpfs "
    "{place}:exec; in Kubernetes an emptyDir, or fsGroup for another volume)",
    Fault.FULL: "{room}",
    Fault.NO_EXECUTION: "Mount it with exec (docker run --tmpfs {place}:exec)",
}


@dataclass(frozen=True)
class Directory:
    """A directory that the server needs.

    Attributes:
        purpose: what is in it, for people.
        path: may not exist yet.
        variable: the environment variable that names another one; empty where none does.
        source: where the path came from: a variable or "default".
        executes: whether code is loaded from it.
        least_free: bytes that must be free.
        room: how to get more room there, as the beginning of a sentence.
    """

    purpose: str
    path: Path
    variable: str = ""
    source: str = "default"
    executes: bool = False
    least_free: int = 0
    room: str = "Make room there, or mount a larger volume"


@dataclass(frozen=True)
class Finding:
    """A fault of a place, with the directories that it affects.

    Attributes:
        place: the directory that was examined.
        reason: the operating system's words, or the room that is left; may be empty.
    """

    fault: Fault
    place: Path
    reason: str
    affected: tuple[Directory, ...]

    @property
    def message(self) -> str:
        """The fault and its victims, as a sentence without its full stop."""
        reason = f": {self.reason}" if self.reason else ""
        purposes = ", ".join(dict.fromkeys(each.purpose for each in self.affected))
        return f"{self.place} {self.fault}{reason} (needed for {purposes})"

    @property
    def fix(self) -> str:
        """What the user has to do, as a sentence."""
        names = ", ".join(dict.fromkeys(each.variable for each in self.affected if each.variable))
        other = f", or set {names} to a directory on another volume" if names else ""
        room = self.affected[0].room
        return f"{_FIXES[self.fault].format(place=self.place, room=room)}{other}."

    @property
    def problem(self) -> Problem:
        """The same as a problem."""
        sources = ", ".join(dict.fromkeys(each.source for each in self.affected))
        return Problem(self.message, sources, self.fix)


def fault_of(directory: Directory) -> Finding | None:
    """Examines a directory. Returns ``None`` where it can be used."""
    try:
        place = nearest_existing(directory.path)
    except OSError as error:  # a parent may not be searched
        reason = error.strerror or str(error)
        return Finding(Fault.UNWRITABLE, directory.path, reason, (directory,))

    def found(fault: Fault, reason: str = "") -> Finding:
        return Finding(fault, place, reason, (directory,))

    if not place.is_dir():
        return found(Fault.NO_DIRECTORY)
    if (refusal := write_error(place)) is not None:
        fault = Fault.FULL if refusal.errno in _NO_ROOM else Fault.UNWRITABLE
        return found(fault, refusal.strerror or str(refusal))
    if directory.least_free:
        state = os.statvfs(place)
        free = state.f_bavail * state.f_frsize
        # Some network file systems report no sizes at all.
        if state.f_blocks and free < directory.least_free:
            needed = f"{free // _MIB} MiB are free, {directory.least_free // _MIB} MiB are needed"
            return found(Fault.FULL, needed)
    if directory.executes and execute_error(place) is not None:
        return found(Fault.NO_EXECUTION)
    return None


def examine(directories: Iterable[Directory]) -> list[Finding]:
    """Examines all directories. A fault of a place and of directories below it is one finding."""
    found: list[Finding] = []
    faults = filter(None, map(fault_of, directories))
    for finding in sorted(faults, key=lambda each: len(each.place.parts)):
        for index, other in enumerate(found):
            if finding.fault is other.fault and finding.place.is_relative_to(other.place):
                affected = (*other.affected, *finding.affected)
                found[index] = replace(other, affected=affected)
                break
        else:
            found.append(finding)
    return found


def check(directories: Iterable[Directory]) -> None:
    """Refuses to continue with a directory that cannot be used.

    Raises:
        DirectoryError: has all faults.
    """
    if findings := examine(directories):
        raise DirectoryError([finding.problem for finding in findings])


def at_process_start(environ: Mapping[str, str]) -> list[Directory]:
    """The directories that the process needs before it knows its flags."""
    found = [_named("temporary files", "TMPDIR", environ, Path(_TEMPORARY), least_free=16 * _MIB)]
    if environ.get(METRICS_VARIABLE):
        found.append(_named("metrics of all processes", METRICS_VARIABLE, environ, Path()))
    return found


def of_server(
    environ: Mapping[str, str], compiles: bool, root: Path = Path("/")
) -> Sequence[Directory]:
    """The directories that the server and its engine need, without those of the disk tier.

    Args:
        environ: the environment.
        compiles: whether vLLM compiles code, which is loaded from the caches.
        root: the directory of ``/dev``.
    """
    home = Path(environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 (fails without a user)
    cache_home = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    temporary = Path(environ.get("TMPDIR") or _TEMPORARY)
    triton_home = Path(environ.get("TRITON_HOME") or home)
    caches = (
        ("vLLM's cache", "VLLM_CACHE_ROOT", cache_home / "vllm"),
        ("torch's compiled code", "TORCHINDUCTOR_CACHE_DIR", temporary / "torchinductor_USER"),
        ("Triton's compiled code", "TRITON_CACHE_DIR", triton_home / ".triton/cache"),
    )
    return (
        *at_process_start(environ),
        Directory(
            "the queues between vLLM's processes",
            root / "dev/shm",
            least_free=vllm.least_shared_memory(environ),
            room="Mount more memory there (docker run --shm-size=1g; in Kubernetes an emptyDir "
            "with medium: Memory)",
        ),
        *(
            _named(purpose, variable, environ, default, compiles, 64 * _MIB)
            for purpose, variable, default in caches
        ),
    )


def _named(
    purpose: str,
    variable: str,
    environ: Mapping[str, str],
    default: Path,
    executes: bool = False,
    least_free: int = 0,
) -> Directory:
    """The directory that a variable names, else the default."""
    value = environ.get(variable)
    path = Path(value).expanduser() if value else default
    source = variable if value else f"default of {variable}"
    return Directory(purpose, path, variable, source, executes, least_free)
