"""Which base class the model has, and why.

KServe's own image carries ``huggingfaceserver``; there our model is a literal subclass of its
``VLLMModel``. It is not on PyPI, so everywhere else a base of ours with the same members stands
in (:mod:`kserve_lmcache.engine.kserve_model`). A contract test holds the two alike in what is used.
"""

from __future__ import annotations

from typing import Any


def choose_base() -> tuple[type[Any], str]:
    """The base class and the reason for it."""
    try:
        from huggingfaceserver.vllm.vllm_model import VLLMModel as KServeVLLMModel
    except ImportError as error:
        from kserve_lmcache.engine.kserve_model import VLLMModel

        return VLLMModel, f"KServe's huggingfaceserver cannot be used here ({error})"
    return KServeVLLMModel, "KServe's huggingfaceserver is installed"
