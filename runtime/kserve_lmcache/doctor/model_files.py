"""The model: readable files, or a hub id that can be fetched. Asks no hub."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path

from kserve_lmcache.config.resources import nearest_existing, why_unwritable
from kserve_lmcache.doctor.check import Finding, failure, ok, reason_of, size, skipped, warning
from kserve_lmcache.doctor.context import Context
from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.arrival import why_no_model
from kserve_lmcache.identity.files import model_files

_CONFIGURATIONS = ("config.json", "params.json")
# As huggingface_hub has it: an organisation or none, and a name.
_HUB_ID = re.compile(r"(\b[\w.-]{1,96}\b/)?\b[\w.-]{1,96}\b", re.ASCII)
_POINTER = b"version https://git-lfs"
_FETCH_AGAIN = "Fetch the model once more, all of it."


def model(context: Context) -> Finding:
    """Looks for the commonest reason of a failed start: a model that is missing or incomplete."""
    name = context.model
    if not name:
        return skipped("no model is given")
    if "://" in name:
        return skipped(f"{name} is fetched by vLLM; not looked at")
    path = Path(name)
    if path.is_file():
        return _weights(path, str(path))
    if path.exists() or name.startswith(("/", "./", "../", "~")):
        return _directory(path, context)
    return _hub(name, context.revision or "main")


def files_of(context: Context) -> Path | None:
    """Returns the model's directory (or single file), if it is on this machine already."""
    name = context.model
    if not name or "://" in name:
        return None
    if Path(name).exists():
        return Path(name)
    with contextlib.suppress(ValueError):
        return _snapshot(name, context.revision or "main")
    return None


def _directory(path: Path, context: Context) -> Finding:
    try:
        entries = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        fix = "Mount the model there (storageUri mounts it on /mnt/models), readable for this user."
        return failure(f"{path}: {error.strerror}", fix)
    if reason := why_no_model(path):
        return failure(reason, "Name the directory that holds config.json itself.")
    configuration = next((name for name in _CONFIGURATIONS if name in entries), None)
    if configuration is None:
        return failure(
            f"{path} has no config.json; it holds {', '.join(entries[:5]) or 'nothing'}",
            "Name the directory that holds config.json itself.",
        )
    file = path / configuration
    try:
        json.loads(file.read_bytes())
        for file in sorted(path.glob("*.index.json")):
            names = set(json.loads(file.read_bytes())["weight_map"].values())
            if missing := sorted(name for name in names if not (path / name).is_file()):
                listed = f"{len(missing)} missing file(s): {', '.join(missing[:3])}"
                return failure(f"{file.name} names {listed}", _FETCH_AGAIN)
    except (OSError, ValueError) as error:
        return failure(f"{file}: {context.quote(reason_of(error))}", _FETCH_AGAIN)
    except (LookupError, TypeError, AttributeError):
        return failure(f"{file} is no index of weights", _FETCH_AGAIN)
    return _weights(path, f"{path}: {configuration}")


def _weights(path: Path, evidence: str) -> Finding:
    """Reads the first bytes of every file of weights."""
    try:
        weights = [file for file in model_files(path) if file.is_weights]
    except IdentityError as error:
        return failure(f"{error.path}: {error.message}", error.fix)
    for file in weights:
        try:
            with file.path.open("rb") as opened:
                start = opened.read(len(_POINTER))
        except OSError as error:
            return failure(f"{file.path}: {error.strerror}", "Let this user read it.")
        if start in (b"", _POINTER):
            problem = "is a pointer of Git LFS, not the file itself" if start else "is empty"
            return failure(f"{file.path}: {problem}", _FETCH_AGAIN)
    total = size(sum(file.size for file in weights))
    return ok(f"{evidence}, weights {total} in {len(weights)} file{'s' * (len(weights) > 1)}")


def _hub(name: str, revision: str) -> Finding:
    from huggingface_hub import constants

    try:
        snapshot = _snapshot(name, revision)
    except ValueError:
        fix = "Give a directory, or ORGANISATION/MODEL of letters, digits, '-', '_' and '.'."
        return failure(f"{name!r} is neither a directory here nor a hub id", fix)
    cache = Path(constants.HF_HUB_CACHE)
    if snapshot is not None:
        return ok(f"{name} ({revision}) is in {cache}; its weights were not looked at")
    if constants.HF_HUB_OFFLINE:
        fix = "Fetch it beforehand, set HF_HOME to where it is, or unset HF_HUB_OFFLINE."
        return failure(f"{name} ({revision}) is not in {cache}, and HF_HUB_OFFLINE is set", fix)
    place = nearest_existing(cache)
    if reason := why_unwritable(place):
        fix = "Set HF_HOME to a directory that this user can write, on a volume."
        return failure(f"{name} is not cached, and {cache} cannot be written ({reason})", fix)
    free = shutil.disk_usage(place).free
    evidence = f"{name} will be fetched into {cache} ({size(free)} free); the hub was not asked"
    if free < 2**30:
        return warning(evidence, "Set HF_HOME to a volume with room for the weights.")
    return ok(evidence)


def _snapshot(name: str, revision: str) -> Path | None:
    """Returns the directory of a model in the hub's cache.

    The library's own function imports a client of HTTP, which takes tens of megabytes.

    Raises:
        ValueError: the name is no hub id.
    """
    from huggingface_hub import constants

    if not _HUB_ID.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise ValueError(f"{name!r} is no hub id")
    cache = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    reference = cache / "refs" / revision
    commit = reference.read_text("utf-8") if reference.is_file() else revision
    snapshot = cache / "snapshots" / commit
    return snapshot if any((snapshot / each).is_file() for each in _CONFIGURATIONS) else None
