"""Modules of vLLM that KServe 0.21 imports, and that newer versions of vLLM have elsewhere.

Without them KServe registers no OpenAI route, and does not say so. :func:`install` adds a finder
behind Python's own, so that it is asked for a module only where the installed vLLM has none of
this name.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# The old name, and where vLLM has its content since 0.29. No modules: a package.
_MOVED: dict[str, tuple[str, ...]] = {
    "vllm.entrypoints.openai.engine": (),
    "vllm.entrypoints.openai.engine.protocol": (
        "vllm.entrypoints.serve.engine.protocol",  # UsageInfo, ModelCard, ModelList
        "vllm.entrypoints.generate.base.protocol",  # DeltaMessage
    ),
    "vllm.entrypoints.chat_utils": ("vllm.renderers.chat_utils",),
}


class _MovedModules(MetaPathFinder, Loader):
    """Finds the modules of :data:`_MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=not _MOVED[fullname])

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the public names of those that have its content now.

        Raises:
            ImportError: vLLM has moved them once more.
        """
        for name in _MOVED[module.__name__]:
            content = vars(importlib.import_module(name))
            vars(module).update({k: v for k, v in content.items() if not k.startswith("_")})


def install() -> None:
    """Make the old names work in this process. Call it before KServe is imported."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
