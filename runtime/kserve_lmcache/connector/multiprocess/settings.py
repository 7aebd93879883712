"""The settings of both parts of the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kserve_lmcache.cache_server.messages import Row
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.tier_plugins import PLUGINS
from kserve_lmcache.connector.copy.pages import pages_of
from kserve_lmcache.connector.reporter import configuration_file
from kserve_lmcache.connector.requirements import check_supported
from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True)
class Settings:
    """What the engine file and vLLM's configuration say.

    Attributes:
        directory: of the cache server.
        values: of the engine file.
        namespace: of the engine.
        block_tokens: tokens of a block.
    """

    directory: Path
    values: Mapping[str, Any]
    namespace: str
    block_tokens: int

    @classmethod
    def of(cls, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Settings:
        """The settings of this process.

        Raises:
            NotImplementedError: the cache does not support the engine.
            OSError: the engine file cannot be read.
        """
        file = configuration_file()
        if file is None:
            raise NotImplementedError("the engine was not started by this package's server")
        check_supported(vllm_config, kv_cache_config)
        extra = vllm_config.kv_transfer_config.kv_connector_extra_config
        settings = cls(
            Path(extra.get(engine_file.CACHE_SERVER) or file.parent),
            engine_file.read(file),
            extra[NAMESPACE],
            pages_of(kv_cache_config).tokens,
        )
        if settings.chunk_tokens % settings.block_tokens:
            raise NotImplementedError(
                f"a chunk of {settings.chunk_tokens} tokens is no whole number of blocks of "
                f"{settings.block_tokens}"
            )
        return settings

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return int(self.values["chunk_size"])

    @property
    def least_tokens(self) -> int:
        """The least number of tokens that is worth a load."""
        return int(self.values.get("min_retrieve_tokens") or 0)

    @property
    def saves_answers(self) -> bool:
        """Whether the KV of generated tokens is stored."""
        return bool(self.values.get("save_decode_cache"))

    @property
    def local_bytes(self) -> int:
        """The size of the local tier for one worker."""
        return int(float(self.values["max_local_cpu_size"]) * 2**30)

    @property
    def tier_names(self) -> tuple[str, ...]:
        """The names of the tiers below the local one."""
        wanted = self.values.get("remote_storage_plugins") or ()
        return tuple(plugin.tier for plugin in PLUGINS if plugin.name in wanted)

    def row(self, rank: tuple[int, int], form: Mapping[str, Any]) -> Row:
        """The row of a worker.

        Args:
            rank: of the worker, and of how many.
            form: of its KV cache (:meth:`.MultiprocessWorkerCache.form`).
        """
        return Row(f"{self.namespace}-{form['name']}", rank, form["object_bytes"])
