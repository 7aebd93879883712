"""The model: files that can be read, or a hub id that can be fetched. Asks no hub."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kserve_lmcache.config.resources import nearest_existing, why_unwritable
from kserve_lmcache.doctor.check import (
    Check,
    Finding,
    Subject,
    failure,
    foreign,
    ok,
    size,
    skipped,
    warning,
)

NAME = "model"

# As huggingface_hub accepts them: https://huggingface.co/docs/huggingface_hub (validate_repo_id).
_HUB_ID = re.compile(r"(?!.*(--|\.\.))(\b[\w.-]+\b/)?\b[\w.-]{1,96}\b", re.ASCII)
_CONFIGURATIONS = ("config.json", "params.json")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_POINTER = b"version https://git-lfs"
_TRUE = ("1", "on", "yes", "true")


def model(subject: Subject) -> Iterator[Finding]:
    """The commonest reason for a server that does not start."""
    if not subject.model:
        yield skipped(NAME, "none is given")
    elif "://" in subject.model:
        yield skipped(NAME, f"{subject.model} is fetched by vLLM; not looked at")
    elif Path(subject.model).is_file():
        yield _file(Path(subject.model))
    elif Path(subject.model).exists() or subject.model.startswith(("/", "./", "../", "~")):
        yield _directory(Path(subject.model))
    else:
        yield _hub(subject.model, subject.revision or "main", subject.environ)


def files_of(subject: Subject) -> Path | None:
    """The directory (or single file) of the model, if it is on this machine already."""
    if not subject.model or "://" in subject.model:
        return None
    if Path(subject.model).exists():
        return Path(subject.model)
    return _cached(subject.model, subject.revision or "main", subject.environ)


def _file(path: Path) -> Finding:
    if reason := _unreadable(path):
        return failure(NAME, f"{path}: {reason}", "Let this user read it.")
    return ok(NAME, f"{path}, {size(path.stat().st_size)}")


def _directory(path: Path) -> Finding:
    try:
        entries = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return failure(
            NAME,
            f"{path}: {error.strerror}",
            "Mount the model there (storageUri mounts it on /mnt/models), readable for this user.",
        )
    configuration = next((name for name in _CONFIGURATIONS if name in entries), None)
    if configuration is None:
        held = ", ".join(entries[:5]) or "nothing"
        return failure(
            NAME,
            f"{path} has no config.json; it holds {held}",
            "Name the directory that holds config.json itself.",
        )
    try:
        json.loads((path / configuration).read_bytes())
    except (OSError, ValueError) as error:
        reason = foreign(getattr(error, "strerror", None) or error, None)
        return failure(
            NAME, f"{path / configuration}: {reason}", "Fetch the model once more, all of it."
        )
    weights = [file for pattern in _WEIGHTS for file in sorted(path.glob(pattern))]
    if not weights:
        return failure(
            NAME, f"{path} has no weights ({', '.join(_WEIGHTS)})", "Fetch the model's weights too."
        )
    if problem := _incomplete(path, weights):
        return failure(NAME, problem, "Fetch the model once more, all of it.")
    total = sum(file.stat().st_size for file in weights)
    files = f"{len(weights)} file{'s' if len(weights) > 1 else ''}"
    return ok(NAME, f"{path}: {configuration}, weights {size(total)} in {files}")


def _incomplete(path: Path, weights: list[Path]) -> str | None:
    for index in sorted(path.glob("*.index.json")):
        try:
            named = set(json.loads(index.read_bytes())["weight_map"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{index} cannot be read"
        if missing := sorted(name for name in named if not (path / name).is_file()):
            return f"{index.name} names {len(missing)} missing file(s): {', '.join(missing[:3])}"
    for file in weights:
        if reason := _unreadable(file):
            return f"{file}: {reason}"
    return None


def _unreadable(file: Path) -> str | None:
    """Why a file of weights is none: a look at its first bytes, not at all of it."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(_POINTER))
    except OSError as error:
        return error.strerror
    if start == _POINTER:
        return "is a pointer of Git LFS, not the file itself"
    return None if start else "is empty"


def _hub(name: str, revision: str, environ: Mapping[str, str]) -> Finding:
    if not _HUB_ID.fullmatch(name):
        return failure(
            NAME,
            f"{name!r} is neither a directory here nor a hub id",
            "Give a directory, or ORGANISATION/MODEL of letters, digits, '-', '_' and '.'.",
        )
    cache = _cache(environ)
    offline = environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    if _cached(name, revision, environ) is not None:
        return ok(NAME, f"{name} ({revision}) is in {cache}; its weights were not looked at")
    if offline:
        return failure(
            NAME,
            f"{name} ({revision}) is not in {cache}, and HF_HUB_OFFLINE is set",
            "Fetch it beforehand, set HF_HOME to where it is, or unset HF_HUB_OFFLINE.",
        )
    there = nearest_existing(cache)
    if reason := why_unwritable(there):
        return failure(
            NAME,
            f"{name} is not cached, and {cache} cannot be written ({reason})",
            "Set HF_HOME to a directory that this user can write, on a volume.",
        )
    free = shutil.disk_usage(there).free
    evidence = f"{name} will be fetched into {cache} ({size(free)} free); the hub was not asked"
    if free < 2**30:
        return warning(NAME, evidence, "Set HF_HOME to a volume with room for the weights.")
    return ok(NAME, evidence)


def _cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models."""
    if chosen := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(chosen).expanduser().absolute()
    if home := environ.get("HF_HOME"):
        return Path(home).expanduser().absolute() / "hub"
    cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")) / ".cache")
    return Path(cache).expanduser().absolute() / "huggingface" / "hub"


def _cached(name: str, revision: str, environ: Mapping[str, str]) -> Path | None:
    """The hub's snapshot, if it has been fetched."""
    repository = _cache(environ) / f"models--{name.replace('/', '--')}"
    commit = revision
    with contextlib.suppress(OSError):  # it is a commit itself, or not here
        commit = (repository / "refs" / revision).read_text().strip()
    snapshot = repository / "snapshots" / commit
    return snapshot if any((snapshot / name).exists() for name in _CONFIGURATIONS) else None


CHECK = Check(NAME, model)
