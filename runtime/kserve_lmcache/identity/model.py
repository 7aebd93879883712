"""Where the files of the engine's model are, so that their content can be told."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kserve_lmcache.identity.errors import IdentityError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# In vLLM's own order; the first that the hub has is what it loads.
_WEIGHTS = ["*.safetensors", "*.bin", "*.pt"]
_FROM_FILES = {"auto", "hf", "safetensors", "pt", "npcache", "gguf", "mistral", "fastsafetensors"}


def model_path(config: VllmConfig) -> Path:
    """The model's directory (or single file), downloaded where it was not yet.

    vLLM's own download is used, so that the engine finds it done; and the engine is held to the
    very commit that was found, since a branch of the hub may move in the meantime.

    Raises:
        IdentityError: the weights are not files that can be looked at.
    """
    model, load = config.model_config, config.load_config
    path = Path(model.model)
    if str(load.load_format) not in _FROM_FILES:
        raise IdentityError(
            path,
            f"is loaded by --load-format={load.load_format}, which does not read its files",
            "Load it from files, or set --model-fingerprint=private: nothing is shared then.",
        )
    if path.exists():
        return path
    from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf

    try:
        folder = Path(
            download_weights_from_hf(model.model, load.download_dir, _WEIGHTS, model.revision)
        )
    except Exception as error:
        raise IdentityError(
            path,
            f"could not be downloaded: {error}",
            "Look at the name, HF_TOKEN and the network, or mount the model.",
        ) from error
    model.revision = folder.name
    return folder
