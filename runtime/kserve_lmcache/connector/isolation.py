"""Keeps the KV of adapters and tenants apart, and clients away from the keys.

Every request passes here when the scheduler first sees the request, whatever route it came by.
LMCache puts each ``lmcache.tag.*`` of a request's transfer parameters into the request's keys. One
tag of ours stands for everything that the KV depends on beside the tokens.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kserve_lmcache.identity.namespace import ADAPTER, TENANT
from kserve_lmcache.identity.tag import NAME, Tag, digest

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec
    from vllm.v1.request import Request

_PARAMETERS = "kv_transfer_params"
# vLLM's hash of a picture, behind the adapter's name where the adapter changes the encoder. Others
# are counted up, when vLLM has turned its own caches off, or chosen by a client.
_CONTENT = re.compile(r"(.*:)?[0-9a-f]{64,128}", re.DOTALL)
TAG = NAME


class Isolation:
    """Tags requests.

    Args:
        tags_reach_keys: whether LMCache puts tags into keys. The layer-wise path does not.
    """

    def __init__(self, tags_reach_keys: bool = True) -> None:
        self._tags_reach_keys = tags_reach_keys

    def mark(self, request: Request) -> bool:
        """Remove the client's transfer parameters, and tag a request of an adapter or a tenant.

        A second call for the same request changes nothing.

        Returns:
            Whether the request may use the cache. A request may not whose KV cannot be told apart
            from other requests' KV.
        """
        request.kv_transfer_params = None
        parameters = request.sampling_params
        if parameters is not None and parameters.extra_args:
            parameters.extra_args = {
                name: value for name, value in parameters.extra_args.items() if name != _PARAMETERS
            }
        if any(not _is_known(each) for each in getattr(request, "mm_features", None) or ()):
            return False
        if request.lora_request is None and not request.cache_salt:
            return True
        if parameters is None or not self._tags_reach_keys:
            return False
        extra = dict(parameters.extra_args or {})
        adapter = ""
        if request.lora_request is not None:
            # No file is read here: the scheduler's step is every request's.
            adapter = extra.get(ADAPTER, "")
            if not adapter:
                return False
        tenant = extra.get(TENANT, "")
        tag = Tag(digest(request.cache_salt or ""), digest(tenant), digest(adapter))
        extra[_PARAMETERS] = {TAG: str(tag)}
        parameters.extra_args = extra
        return True


def _is_known(feature: MultiModalFeatureSpec) -> bool:
    """Whether this is a picture whose name is a hash of its content."""
    return feature.modality == "image" and _CONTENT.fullmatch(feature.identifier) is not None


def tag_of(request: Request) -> str:
    """The tag of a request that :meth:`Isolation.mark` has marked; empty without one."""
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    return str((extra.get(_PARAMETERS) or {}).get(TAG, ""))


def tag_suffix(tag: str) -> str:
    """What a tag is in the names of chunks; empty without a tag."""
    return f"{TAG.removeprefix('lmcache.tag.')}%{tag}" if tag else ""
