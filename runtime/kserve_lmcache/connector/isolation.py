"""Keeps the KV of adapters and tenants apart, and clients away from the keys.

Every request passes here when the scheduler first sees the request, whatever route it came by.
LMCache puts each ``lmcache.tag.*`` of a request's transfer parameters into the request's keys. One
tag of ours stands for everything that the KV depends on beside the tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.files import model_files
from kserve_lmcache.identity.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

logger = init_logger(__name__)

_PARAMETERS = "kv_transfer_params"
TAG = "lmcache.tag.kserve"


@dataclass(frozen=True)
class _Adapter:
    """The content of an adapter when a request first used the adapter."""

    path: Path
    content: Fingerprint
    stamps: list[tuple[str, tuple[int, ...]]]


class Isolation:
    """Tags requests.

    Args:
        tags_reach_keys: whether LMCache puts tags into keys. The layer-wise path does not.
    """

    def __init__(self, tags_reach_keys: bool = True) -> None:
        self._tags_reach_keys = tags_reach_keys
        self._adapters: dict[tuple[int, str], _Adapter | None] = {}

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
        if request.lora_request is None and not request.cache_salt:
            return True
        adapter = ""
        if request.lora_request is not None:
            known = self._adapter(request.lora_request)
            if known is None:
                return False
            adapter = known
        if parameters is None or not self._tags_reach_keys:
            return False
        extra = dict(parameters.extra_args or {})
        extra[_PARAMETERS] = {TAG: _digest(adapter, request.cache_salt)}
        parameters.extra_args = extra
        return True

    def _adapter(self, lora: LoRARequest) -> str | None:
        """The digest of an adapter's content; ``None`` when the content is not known for sure."""
        key = (lora.lora_int_id, lora.lora_path)
        if key not in self._adapters:
            self._adapters[key] = _examine(lora)
        known = self._adapters[key]
        if known is None:
            return None
        if _stamps(known.path) != known.stamps:
            # The engine may use the old or the new content.
            logger.warning(
                "The files of adapter %s changed after it was loaded: its requests are no longer "
                "offloaded. Load changed adapters under a new name.",
                lora.lora_name,
            )
            self._adapters[key] = None
            return None
        return known.content.digest


def _examine(lora: LoRARequest) -> _Adapter | None:
    from vllm.lora.utils import get_adapter_absolute_path

    try:
        path = Path(get_adapter_absolute_path(lora.lora_path))
        stamps = _stamps(path)
        content = fingerprint(path)
    except (IdentityError, OSError, ValueError) as error:
        logger.warning("Requests of adapter %s are not offloaded: %s", lora.lora_name, error)
        return None
    logger.info("Adapter %s: content %s (%s)", lora.lora_name, content.digest[:16], content.summary)
    return _Adapter(path, content, stamps)


def _stamps(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Size, times and inode of the fingerprinted files; empty when the files are gone."""
    try:
        return [(file.name, file.stamp) for file in model_files(path)]
    except IdentityError:
        return []


def _digest(adapter: str, salt: str | None) -> str:
    # A salt may be a secret and may hold any character, so a key holds only its digest.
    canonical: Any = json.dumps([adapter, salt or ""])
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]
