"""Reads names from the source of a package without importing the package.

Importing vLLM or LMCache loads torch: hundreds of megabytes, and seconds. Some of their modules
need nothing of it. Such a module is executed here outside of ``sys.modules``, and what it would
import of its package is given to it.
"""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def directory_of(package: str) -> Path:
    """The directory of an installed package.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)  # of a name without a dot, this imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    return Path(next(iter(spec.submodule_search_locations)))


def execute(path: Path, name: str, instead: Callable[[str], Any]) -> ModuleType:
    """Execute a module's file. ``sys.modules`` stays as it is.

    Args:
        path: the file.
        name: the module's name.
        instead: returns what the module gets for a module that it imports (a relative name begins
            with dots), or None for the module of this name, which is imported then.

    Raises:
        Exception: whatever the module raises.
    """

    def load(
        imported: str,
        namespace: Any = None,
        local: Any = None,
        names: Any = (),
        level: int = 0,
    ) -> Any:
        given = instead("." * level + imported)
        if given is not None:
            return given
        return builtins.__import__(imported, namespace, local, names, level)

    module = ModuleType(name)
    module.__dict__["__file__"] = str(path)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": load}
    exec(compile(path.read_bytes(), str(path), "exec"), vars(module))  # noqa: S102
    return module
