"""The journal of the chunks on the disk, as the scheduler's process keeps it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kserve_lmcache.config.tier_plugins import DISK_PLUGIN
from kserve_lmcache.connector.events.chunks import Chunk
from kserve_lmcache.identity.namespace import NAMESPACE
from kserve_lmcache.tiers.disk.journal import Journal, journal_path, remove_abandoned

if TYPE_CHECKING:
    from lmcache.v1.config import LMCacheEngineConfig
    from vllm.config import VllmConfig

    from kserve_lmcache.connector.events.ledger import Change


def journal_of(vllm_config: VllmConfig, lmcache_config: LMCacheEngineConfig) -> Journal | None:
    """The journal beside the files of the disk tier; ``None`` without a disk tier.

    Engines whose hashes differ have different journals.
    """
    if DISK_PLUGIN.name not in (lmcache_config.remote_storage_plugins or ()):
        return None
    disk, _ = DISK_PLUGIN.decode(lmcache_config.extra_config)
    cache = vllm_config.cache_config
    parts = [
        vllm_config.kv_transfer_config.kv_connector_extra_config.get(NAMESPACE),
        vllm_config.parallel_config.world_size,
        cache.block_size,
        cache.prefix_caching_hash_algo,
    ]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Journal(journal_path(Path(disk.directory_of(0)), digest))


def remove_old_journals(lmcache_config: LMCacheEngineConfig, own: Journal | None) -> None:
    """Begin to remove journals that are used no longer, but for one's own.

    Args:
        lmcache_config: of the engine.
        own: the journal of this engine; ``None`` where the engine writes none.
    """
    if DISK_PLUGIN.name in (lmcache_config.remote_storage_plugins or ()):
        disk, _ = DISK_PLUGIN.decode(lmcache_config.extra_config)
        remove_abandoned(map(Path, disk.directories), None if own is None else own.path)


def chunks_in(journal: Journal) -> Iterator[tuple[str, Chunk]]:
    """The names and the chunks that a journal has."""
    for name, content in journal.rows():
        try:
            yield name, _decode(content)
        except (msgspec.DecodeError, TypeError, ValueError):
            continue


def record(journal: Journal, changes: Sequence[Change]) -> None:
    """Write the changes of the disk to a journal."""
    gone = {change.name for change in changes if not change.present}
    if gone:
        journal.delete(gone)
    rows = []
    for change in changes:
        if change.present:
            # What cannot be written is not announced after a restart.
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                rows.append((change.name, str(change.chunk.name), _encode(change.chunk)))
    if rows:
        journal.put(rows)


def _encode(chunk: Chunk) -> bytes:
    return msgspec.msgpack.encode(
        [
            chunk.block_hashes,
            chunk.parent,
            chunk.tokens.tobytes(),
            chunk.extra_keys,
            chunk.lora_id,
            chunk.lora_name,
        ]
    )


def _decode(content: bytes) -> Chunk:
    hashes, parent, tokens, extra_keys, lora_id, lora_name = msgspec.msgpack.decode(content)
    values = array("I")
    values.frombytes(tokens)
    keys: Any = extra_keys and tuple(each and tuple(each) for each in extra_keys)
    return Chunk(tuple(hashes), parent, values, keys, lora_id, lora_name)
