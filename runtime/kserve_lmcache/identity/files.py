"""The files of a model that change its KV.

These files are hashed: the weights of every format, the settings that change the numbers, and
Python files, which are a model's own code. These files are not hashed:

- Tokenizers and chat templates. A key holds token ids, and the KV of given token ids does not
  depend on the text.
- ``generation_config.json``. It changes the choice of the next token, not the KV of a given token.
- Files that training leaves behind, as vLLM lists them (``filter_files_not_needed_for_inference``
  in ``vllm/model_executor/model_loader/weight_utils.py``).

vLLM prefers ``*.safetensors`` to ``*.bin`` to ``*.pt``, and skips a safetensors file that the index
does not name. There are exceptions: ``--load-format pt`` and ``npcache``, architectures that name
their files, and adapters, which are always ``adapter_model.*``. So every format is hashed. One file
too many costs a cache miss between two copies. One file too few loads the KV of another model.

vLLM looks for weights in the model's directory. Layouts like that of diffusers (cosmos3:
``transformer/*.safetensors``) have none there, and only then the directories one level down are
hashed. Otherwise these directories hold other things: ``original/``, ``onnx/``, checkpoints, and
adapters, which have a path and a fingerprint of their own. An adapter that an architecture loads by
itself from such a directory, like ``vision-lora/`` of Phi-4-multimodal, is therefore not hashed.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kserve_lmcache.errors import IdentityError

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
    # The key of an image is the hash of the image alone, so its preprocessing is hashed here.
    "*processor_config.json",
    "*.py",
)
# Settings that name the origin of a file. The KV does not depend on them.
_ORIGIN_SETTINGS = {
    "config.json": {"_name_or_path", "_commit_hash", "transformers_version"},
    "adapter_config.json": {"base_model_name_or_path", "revision"},
}


@dataclass(frozen=True)
class ModelFile:
    """A file that changes the KV.

    Attributes:
        name: the path relative to the model's directory.
        path: the path of the file.
        stamp: size in bytes, mtime and ctime in nanoseconds, inode and device. A link has the
            stamp of its target.
        is_weights: whether the file holds weights. Otherwise it holds settings or code.
    """

    name: str
    path: Path
    stamp: tuple[int, int, int, int, int]
    is_weights: bool

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.stamp[0]

    @property
    def ctime(self) -> int:
        """The time of the last change of the file or its inode, in nanoseconds."""
        return self.stamp[2]


def model_directory(model: Path) -> Path:
    """The directory of the model's files. A model may also be one file, such as a GGUF file."""
    return model.parent if model.is_file() else model


def model_files(model: Path) -> list[ModelFile]:
    """The files that change the KV, sorted by name.

    For a model that is one file: that file, and the settings beside it.

    Raises:
        IdentityError: the model does not exist, has no weights, or has an unreadable file.
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
            "Give the directory of the model's own files, and check that the download is complete.",
        )
    return sorted(files, key=lambda file: file.name)


def settings_content(file: ModelFile) -> bytes:
    """The content of a file of settings, without the settings that name its origin.

    Raises:
        IdentityError: the file cannot be read, or must be JSON and is not.
    """
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise unreadable(file.path, error) from error
    origin = _ORIGIN_SETTINGS.get(file.path.name)
    if origin is None:
        return content
    try:
        settings = without(json.loads(content), origin)
    except (ValueError, RecursionError) as error:
        raise IdentityError(
            file.path, f"is not JSON ({error})", "Download the model again."
        ) from error
    return json.dumps(settings, sort_keys=True).encode()


def without(value: Any, names: Collection[str]) -> Any:
    """``value`` without these keys, at any depth: a multimodal model nests configurations."""
    if isinstance(value, dict):
        return {key: without(inner, names) for key, inner in value.items() if key not in names}
    if isinstance(value, list | tuple):
        return [without(inner, names) for inner in value]
    return value


def unreadable(path: Path, error: OSError) -> IdentityError:
    """The error for a file that the operating system does not let this process read."""
    return IdentityError(
        path,
        f"cannot be read ({error.strerror or error})",
        "Give the user of this process read access to the model's files, or download them again.",
    )


def _files_in(directory: Path, root: Path) -> list[ModelFile]:
    found = []
    for path in _entries(directory):
        is_weights = path.suffix in _WEIGHTS and path.name not in _TRAINING
        is_settings = any(fnmatchcase(path.name, pattern) for pattern in _SETTINGS)
        # The loaders' patterns do not match hidden files either.
        if path.name.startswith(".") or not (is_weights or is_settings):
            continue
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from error
        if stat.S_ISREG(status.st_mode):
            times = status.st_mtime_ns, status.st_ctime_ns
            stamp = (status.st_size, *times, status.st_ino, status.st_dev)
            found.append(ModelFile(path.relative_to(root).as_posix(), path, stamp, is_weights))
    return found


def _directories(directory: Path) -> list[Path]:
    return [path for path in _entries(directory) if path.is_dir() and not path.name.startswith(".")]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        raise unreadable(directory, error) from error
