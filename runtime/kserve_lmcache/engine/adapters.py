"""The content of LoRA adapters, which is part of the keys of their requests.

The server reads an adapter's files when the engine loads the adapter, and tells the engine the
content with every request. The engine's scheduler, for which all requests wait, reads no file.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kserve_lmcache.errors import IdentityError
from kserve_lmcache.identity.files import model_files
from kserve_lmcache.identity.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

logger = logging.getLogger(__name__)

_MAX_ADAPTERS = 10_000  # the oldest is examined anew when it is used again


@dataclass(frozen=True)
class _Adapter:
    """The content of an adapter when it was loaded, or first used."""

    path: Path
    content: Fingerprint
    stamps: list[tuple[str, tuple[int, ...]]]


class Adapters:
    """Knows the content of every adapter that was used. Reads files in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[int, str], _Adapter | None] = {}

    async def content(self, lora: LoRARequest) -> str | None:
        """The digest of an adapter's content; ``None`` when the content is not known for sure.

        The first call for an adapter reads its files. Later calls only look whether the files have
        changed since: the engine may load an adapter again at any time.
        """
        return await asyncio.to_thread(self._content, lora)

    def _content(self, lora: LoRARequest) -> str | None:
        key = (lora.lora_int_id, lora.lora_path)
        if key not in self._known:
            self._remember(key, _examine(lora))
        known = self._known.get(key)
        if known is None:
            return None
        if _stamps(known.path) != known.stamps:
            # The engine may use the old or the new content.
            logger.warning(
                "The files of adapter %s changed after it was loaded: its requests are no longer "
                "offloaded. Load changed adapters under a new name.",
                lora.lora_name,
            )
            self._remember(key, None)
            return None
        return known.content.digest

    def _remember(self, key: tuple[int, str], adapter: _Adapter | None) -> None:
        with self._lock:
            self._known[key] = adapter
            if len(self._known) > _MAX_ADAPTERS:
                del self._known[next(iter(self._known))]


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
