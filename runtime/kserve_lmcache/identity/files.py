"""Which files of a model decide the KV that it computes.

Taken are the weights of every format, the settings that change the numbers, and Python files
(custom code of a model). Not taken:

- Tokenizers and chat templates. Keys hold token ids, and the KV of given token ids does not
  depend on how text became those ids.
- ``generation_config.json``. It changes which token is sampled, not the KV of a given token.
- Left-overs of training, by vLLM's own list (``filter_files_not_needed_for_inference`` in
  ``vllm/model_executor/model_loader/weight_utils.py``).

vLLM prefers ``*.safetensors`` to ``*.bin`` to ``*.pt``, and skips safetensors files that the index
does not name. That order has exceptions (``--load-format pt`` and ``npcache``; architectures that
name files of their own; an adapter is only ever ``adapter_model.*``), so all formats are taken: a
file too many can only cost sharing between two copies, a file too few could serve wrong KV.

vLLM looks for weights in the model's own directory. The exceptions are diffusers-like layouts
(cosmos3: ``transformer/*.safetensors``), which have none at the top; then, and only then, the
directories one level down are looked into. Otherwise directories below are left alone, since they
hold other things (``original/``, ``onnx/``, checkpoints, adapters that are loaded by a path and
fingerprint of their own). Unseen for that reason: adapters inside a model's directory that its
architecture uses by itself, such as ``vision-lora/`` of Phi-4-multimodal.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kserve_lmcache.identity.errors import IdentityError, unreadable

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz", ".tensors")
_TRAINING = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"}
_SETTINGS = (
    "config.json",
    "params.json",
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "quantization_config*",
    "hf_quant_config.json",
    "*.index.json",
    # An image's key is its own hash, so how it becomes numbers must be in the fingerprint.
    "*processor_config.json",
    "*.py",
)
# What says where a model came from or what wrote it, and is not computed with.
_NAMES = {
    "config.json": {"_name_or_path", "_commit_hash", "transformers_version"},
    "adapter_config.json": {"base_model_name_or_path", "revision"},
}


@dataclass(frozen=True)
class ModelFile:
    """A file that matters.

    ``name`` is relative to the model's directory; ``stamp`` is the size in bytes, mtime and ctime
    in nanoseconds, inode and device of the file itself (links are followed).
    """

    name: str
    path: Path
    stamp: tuple[int, int, int, int, int]
    is_weights: bool

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return self.stamp[0]


def model_directory(model: Path) -> Path:
    """Where the model's files are: itself, or the directory of a model that is one file."""
    return model.parent if model.is_file() else model


def model_files(model: Path) -> list[ModelFile]:
    """The files that matter, sorted by name.

    For a model that is one file (GGUF): that file and the settings beside it.

    Raises:
        IdentityError: there is no such model, it has no weights, or a file cannot be reached.
    """
    try:
        model.stat()
    except FileNotFoundError as error:
        raise IdentityError(
            model, "does not exist", "Give the path at which the model's files are mounted."
        ) from error
    except OSError as error:
        raise unreadable(model, error) from error
    directory = model_directory(model)
    files = _files_in(directory, directory)
    if model != directory:
        files = [file for file in files if not file.is_weights or file.name == model.name]
    elif not any(file.is_weights for file in files):
        files += [file for below in _directories(directory) for file in _files_in(below, directory)]
    if not any(file.is_weights for file in files):
        raise IdentityError(
            model,
            f"holds no weights ({', '.join('*' + suffix for suffix in _WEIGHTS)})",
            "Give the directory that holds the model's own files, and see that the download "
            "was complete.",
        )
    return sorted(files, key=lambda file: file.name)


def settings_content(file: ModelFile) -> bytes:
    """What a file of settings says, less what only names.

    Raises:
        IdentityError: the file cannot be read, or should be JSON and is not.
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise unreadable(file.path, error) from error
    names = _NAMES.get(file.path.name)
    if names is None:
        return content
    try:
        settings = without(json.loads(content), names)
    except (ValueError, RecursionError) as error:
        raise IdentityError(
            file.path, f"is not JSON ({error})", "Download the model again."
        ) from error
    return json.dumps(settings, sort_keys=True).encode()


def _files_in(directory: Path, root: Path) -> list[ModelFile]:
    found = []
    for path in _entries(directory):
        is_weights = path.suffix in _WEIGHTS and path.name not in _TRAINING
        is_settings = any(fnmatchcase(path.name, pattern) for pattern in _SETTINGS)
        # The loaders' globs pass over hidden files too.
        if path.name.startswith(".") or not (is_weights or is_settings):
            continue
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISREG(status.st_mode):
            stamp = (
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
                status.st_dev,
            )
            found.append(ModelFile(path.relative_to(root).as_posix(), path, stamp, is_weights))
    return found


def _directories(directory: Path) -> list[Path]:
    return [path for path in _entries(directory) if path.is_dir() and not path.name.startswith(".")]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise unreadable(directory, error) from error


def without(value: Any, names: Collection[str]) -> Any:
    """``value`` without these keys, at any depth: multimodal models nest whole configurations."""
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    if isinstance(value, list | tuple):
        return [without(inner, names) for inner in value]
    return value
