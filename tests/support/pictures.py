"""Tiny models that see pictures, randomly initialised from a fixed seed.

    python -m tests.support.pictures FAMILY DIRECTORY

writes one, where torchvision is (:mod:`tests.support.torchvision`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tests.support.server import MODEL

SIDE = 112  # pixels of a picture: 64 tokens of a LLaVA here, and 16 of a Qwen2-VL
_TEXT: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # Large enough that an answer depends on all before it.
    "initializer_range": 0.15,
}
_TEMPLATE = (
    "{{% for message in messages %}}{{{{ message['role'] + ': ' }}}}"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'text' %}}{{{{ part['text'] }}}}{{% else %}}{}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}assistant: {{% endif %}}"
)


def llava(directory: Path) -> Path:
    """A LLaVA: a CLIP encoder, whose output takes the places of the tokens of a picture."""
    tokenizer = _tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        projection_dim=64,
    )
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=LlamaConfig(vocab_size=len(tokenizer), **_TEXT).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // 14) ** 2,
    )
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE.format("<image>"),
    )
    _write(directory, LlavaForConditionalGeneration, config, processor)
    # transformers 5 leaves out a part of the names that vLLM 0.32 knows.
    path, new, old = directory / "model.safetensors", "vision_tower.", "vision_tower.vision_model."
    tensors = {
        name.replace(new, old) if old not in name else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return directory


def qwen2_vl(directory: Path) -> Path:
    """A Qwen2-VL: positions in three dimensions, and more tokens for a larger picture."""
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = _tokenizer(*names)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(names))
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
            **_TEXT,
        },
        vision_config={"depth": 2, "embed_dim": 64, "num_heads": 4, "hidden_size": 128},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    pixels = {"shortest_edge": 56 * 56, "longest_edge": 4 * SIDE * SIDE}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(size=pixels),
        tokenizer,
        Qwen2VLVideoProcessor(size=pixels),
        chat_template=_TEMPLATE.format("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return _write(directory, Qwen2VLForConditionalGeneration, config, processor)


FAMILIES: Mapping[str, Callable[[Path], Path]] = {"llava": llava, "qwen2-vl": qwen2_vl}


def _tokenizer(*special: str) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _write(directory: Path, model: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model(config).to(torch.float32).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    FAMILIES[sys.argv[1]](Path(sys.argv[2]))
