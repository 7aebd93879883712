"""Names of vLLM that are private or have moved between versions.

Every function imports vLLM when it is called: that import takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

# In vLLM's own order: it loads the first that the hub has.
_WEIGHT_PATTERNS = ["*.safetensors", "*.bin", "*.pt"]


def knows_hash_algorithm(name: str) -> bool:
    """Whether vLLM has a hash of this name, and the package for it is installed."""
    from vllm.utils.hashing import get_hash_fn_by_name

    try:
        get_hash_fn_by_name(name)
    except (ValueError, ImportError):
        return False
    return True


def cpu_attention_kernel(
    dtype: torch.dtype, block_size: int, head_size: int, cache_dtype: str
) -> str:
    """The attention kernel that vLLM's CPU backend chooses for the processor.

    Raises:
        NotImplementedError: vLLM has no kernel for these arguments.
    """
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    return str(_get_attn_isa(dtype, block_size, head_size, cache_dtype))


def download_model(config: VllmConfig) -> Path:
    """Download the model's weights from the hub, as the engine does when it starts.

    Returns:
        The directory of the snapshot. Its name is the commit.
    """
    from vllm.model_executor.model_loader.weight_utils import download_weights_from_hf

    model, load = config.model_config, config.load_config
    return Path(
        download_weights_from_hf(model.model, load.download_dir, _WEIGHT_PATTERNS, model.revision)
    )
