"""A fault injector: Python imports it in every process whose ``PYTHONPATH`` has this directory.

While the file that ``FAULT_INJECTOR_SWITCH`` names holds lines ``CALL CHANCE``, those calls of
LMCache raise with that chance, half of the times after they have done their work. The first time
of each is said on stderr.

``FAULT_INJECTOR_LOAD_DELAY`` delays half of the loads at random, by so many seconds at most: half
of these before anything is loaded, the others after it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

CALLS = {
    "lmcache.integration.vllm.vllm_v1_adapter": (
        "LMCacheConnectorV1Impl",
        (
            "get_num_new_matched_tokens",
            "update_state_after_alloc",
            "build_connector_meta",
            "request_finished",
            "start_load_kv",
            "wait_for_layer_load",
            "save_kv_layer",
            "wait_for_save",
            "get_finished",
            "get_block_ids_with_load_errors",
        ),
    ),
    "lmcache.v1.cache_engine": ("LMCacheEngine", ("retrieve", "store")),
}

_LOAD_DELAY = float(os.environ.get("FAULT_INJECTOR_LOAD_DELAY", 0))
_injected_once: set[str] = set()


class InjectedFault(Exception):
    """Raised by nobody else."""


def _chances() -> dict[str, float]:
    try:
        lines = Path(os.environ["FAULT_INJECTOR_SWITCH"]).read_text().splitlines()
    except OSError:
        return {}
    return {call: float(chance) for call, chance in map(str.split, lines)}


def _injected(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        if random.random() >= _chances().get(name, 0.0):
            return real(*args, **kwargs)
        if name not in _injected_once:
            _injected_once.add(name)
            print(f"fault injector: {name}", file=sys.stderr, flush=True)
        if random.random() < 0.5:
            real(*args, **kwargs)
        raise InjectedFault(name)

    return call


def _delayed(real: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        before, after = random.choice(((0, 0), (0, 0), (1, 0), (0, 1)))
        time.sleep(before * random.uniform(0, seconds))
        loaded = real(*args, **kwargs)
        time.sleep(after * random.uniform(0, seconds))
        return loaded

    return call


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps the calls once their module is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            owner, calls = CALLS[name]
            for call in calls:
                real = getattr(getattr(module, owner), call)
                if call == "retrieve" and _LOAD_DELAY:
                    real = _delayed(real, _LOAD_DELAY)
                if "FAULT_INJECTOR_SWITCH" in os.environ:
                    real = _injected(call, real)
                setattr(getattr(module, owner), call, real)

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


if "FAULT_INJECTOR_SWITCH" in os.environ or _LOAD_DELAY:
    sys.meta_path.insert(0, _Finder())
