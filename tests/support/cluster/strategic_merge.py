"""Kubernetes' strategic merge patch, as far as pods need it.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md
"""

from __future__ import annotations

import copy
from typing import Any

# By which field the items of a list are told apart; the items of all other lists are replaced.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}
# Of a volume and of a variable one kind of source counts, the patch's.
_SOURCES = {"env": ("value", "valueFrom")}


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """The base with the patch laid over it; neither is changed."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = dict(base)
        for source in _SOURCES.get(field, ()):
            if set(_SOURCES[field]) & set(patch):
                merged.pop(source, None)
        for name, value in patch.items():
            merged[name] = merge(base[name], value, name) if name in base else value
        return copy.deepcopy(merged)
    if isinstance(base, list) and isinstance(patch, list) and field in _KEYS:
        key = _KEYS[field]
        of_patch = {item[key]: item for item in patch}
        kept = [
            merge(item, of_patch.pop(item[key]), field) if item[key] in of_patch else item
            for item in base
        ]
        # New items stand before those of the base.
        return copy.deepcopy([*of_patch.values(), *kept])
    return copy.deepcopy(patch)
