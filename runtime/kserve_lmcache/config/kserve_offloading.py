"""Reads KServe's field ``kvCacheOffloading`` as the configuration of this runtime's tiers.

KServe passes the field of an LLMInferenceService as vLLM's flag ``--kv-transfer-config``: the
connector ``OffloadingConnector`` with ``TieringOffloadingSpec`` (KServe's
``pkg/controller/v1alpha2/llmisvc/config_merge.go``). The tiers of this runtime take its place, and
whatever they cannot do is refused by name.

======================================  ==================  ======================
entry of ``kv_connector_extra_config``  field of KServe     key
======================================  ==================  ======================
``cpu_bytes_to_use``                    ``cpu``             ``max_local_cpu_size``
``eviction_policy``                     ``evictionPolicy``  ``cache_policy``
``secondary_tiers``                     ``secondary``       ``local_disk``
======================================  ==================  ======================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kserve_lmcache.config import keys
from kserve_lmcache.config.configuration import Configuration, Value
from kserve_lmcache.config.resources import nearest_existing
from kserve_lmcache.config.sources import Assignment, Content
from kserve_lmcache.errors import Problem

CONNECTOR = "OffloadingConnector"
SPEC = "TieringOffloadingSpec"
GIB = 2**30

_FLAG = "--kv-transfer-config"
# The sources of the values, as people see them.
CPU = f"kvCacheOffloading.cpu ({_FLAG} cpu_bytes_to_use)"
POLICY = f"kvCacheOffloading.evictionPolicy ({_FLAG} eviction_policy)"
SECONDARY = f"kvCacheOffloading.secondary ({_FLAG} secondary_tiers)"
_READ = ("spec_name", "cpu_bytes_to_use", "eviction_policy", "secondary_tiers")
_OF_LMCACHE = "lmcache."  # read with the flags
_READ_OF_A_TIER = ("type", "root_dir")
_LEAVE = "or leave offloading to vLLM by --offload=off."
# Of the size of a volume: logs and other files of the container count as well.
_SHARE_OF_VOLUME = 0.9


def read(spec: Mapping[str, Any]) -> Content:
    """Read the field.

    Args:
        spec: ``kv_connector_extra_config`` of the flag.
    """
    content = Content()
    if spec.get("spec_name") != SPEC:
        _refuse(content, "spec_name", f"is {spec.get('spec_name')!r}, but must be {SPEC}")
        return content
    known = keys.table()
    if (size := cpu_bytes(spec)) is None:
        message = f"is {spec.get('cpu_bytes_to_use')!r}, but must be a number of bytes above 0"
        _refuse(content, "cpu_bytes_to_use", message)
    else:
        key = known["max_local_cpu_size"]
        content.assignments.append(Assignment(key, size / GIB, CPU))
    if (policy := spec.get("eviction_policy")) is not None:
        content.assign(known["cache_policy"], str(policy).upper(), POLICY)
    _read_secondary(content, spec.get("secondary_tiers") or [])
    for name in spec:
        if name not in _READ and not name.startswith(_OF_LMCACHE):
            _refuse(content, name, "is not honoured by this server")
    return content


def _read_secondary(content: Content, tiers: Any) -> None:
    if not isinstance(tiers, list) or not all(isinstance(tier, dict) for tier in tiers):
        _refuse(content, "secondary_tiers", "must be a list of mappings")
        return
    if len(tiers) > 1:
        _refuse(content, "secondary_tiers", f"has {len(tiers)} tiers, but this server has one disk")
        return
    for tier in tiers:
        if tier.get("type") != "fs":
            message = f"is {tier.get('type')!r}, but must be fs (fileSystem)"
            _refuse(content, "secondary_tiers type", message)
        directory = tier.get("root_dir")
        # A comma separates directories of the key.
        if not isinstance(directory, str) or not Path(directory).is_absolute() or "," in directory:
            message = f"is {directory!r}, but must be the path of one directory"
            _refuse(content, "secondary_tiers root_dir", message)
        else:
            content.assign(keys.table()["local_disk"], directory, SECONDARY)
        for name in tier:
            if name not in _READ_OF_A_TIER:
                _refuse(content, f"secondary_tiers {name}", "is not honoured by this server")


def _refuse(content: Content, name: str, message: str) -> None:
    fix = f"Correct or remove {name}, {_LEAVE}"
    content.problems.append(Problem(f"{name} {message}", f"{_FLAG} {name}", fix))


def cpu_bytes(spec: Mapping[str, Any]) -> int | None:
    """The bytes of the local tiers of all workers of an engine; ``None`` for another value."""
    size = spec.get("cpu_bytes_to_use")
    is_size = isinstance(size, int) and not isinstance(size, bool) and size > 0
    return size if is_size else None


def share_of_worker(total: float, workers: int) -> Value:
    """The size of the local tier of one worker in GiB: the field is the size of an engine."""
    shared = f", shared by {workers} workers" if workers > 1 else ""
    return Value(total / workers, f"{CPU}{shared}")


def size_disk(configuration: Configuration, spec: Mapping[str, Any]) -> None:
    """Bound the disk tier of the field, unless a source does.

    KServe does not tell the server how large the volume is. The pod is evicted when an emptyDir
    outgrows its size, so that without a word about the size the tier is as large as the local tier,
    which a secondary tier is meant to exceed.
    """
    size, name = cpu_bytes(spec), "max_local_disk_size"
    if configuration.source("local_disk") != SECONDARY or name in configuration.values or not size:
        return
    told = configuration.get("ephemeral_storage")
    if told:
        source = f"ephemeral_storage ({configuration.source('ephemeral_storage')})"
        chosen = Value(
            told * _SHARE_OF_VOLUME / GIB, f"default: {_SHARE_OF_VOLUME:.0%} of {source}"
        )
    else:
        chosen = Value(size / GIB, "default: as much as kvCacheOffloading.cpu")
    directory = configuration.get("local_disk")
    room = _room(Path(directory)) * _SHARE_OF_VOLUME / GIB
    if 0 < room < chosen.value:
        source = f"default: {_SHARE_OF_VOLUME:.0%} of the file system of {directory}"
        chosen = Value(room, source)
    configuration.values[name] = chosen
    if not told:
        configuration.notes.append(
            f"max_local_disk_size is {chosen.value:.3g} GB ({chosen.source}): KServe does not tell "
            "the size of the volume of kvCacheOffloading.secondary. Set max_local_disk_size for a "
            "larger one"
        )


def _room(directory: Path) -> int:
    """The size of the file system of a directory; 0 where none is known."""
    try:
        state = os.statvfs(nearest_existing(directory))
    except OSError:
        return 0
    return state.f_blocks * state.f_frsize
