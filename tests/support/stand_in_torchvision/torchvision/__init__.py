"""Makes PyPI's torchvision importable beside torch for CPUs.

PyPI's build is for torch with CUDA: its library cannot be loaded, and an import fails because the
library's operators are missing. Here they have names and no code. What prepares pictures uses none
of them. PyTorch's index has a build for CPUs.
"""

import importlib.machinery
import re
import sys
from pathlib import Path

import torch

_HERE = Path(__file__).parents[1]
_path = [each for each in sys.path if Path(each or ".").resolve() != _HERE]
_real = importlib.machinery.PathFinder.find_spec(__name__, _path)
if _real is None or _real.origin is None or _real.loader is None:
    raise ImportError("torchvision is not on the path")
__path__ = list(_real.submodule_search_locations or ())
__file__ = _real.origin
_registered = (Path(__file__).parent / "_meta_registrations.py").read_text()
_operators = torch.library.Library("torchvision", "DEF")
for _name in sorted(
    set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', _registered))
):
    _operators.define(f"{_name}() -> ()")
_real.loader.exec_module(sys.modules[__name__])
