"""Chooses the base class of the model.

KServe's image has the package ``huggingfaceserver``; there the model is a subclass of its
``VLLMModel``. The package is not on PyPI. Elsewhere the base class is
:mod:`kserve_lmcache.engine.kserve_model`, which has the same members; a contract test compares
the members that are used.
"""

from __future__ import annotations

from typing import Any


def choose_base() -> tuple[type[Any], str]:
    """The base class, and the reason for the choice."""
    try:
        from huggingfaceserver.vllm.vllm_model import VLLMModel as KServeVLLMModel
    except ImportError as error:
        from kserve_lmcache.engine.kserve_model import VLLMModel

        return VLLMModel, f"KServe's huggingfaceserver cannot be used here ({error})"
    return KServeVLLMModel, "KServe's huggingfaceserver is installed"
