"""vLLM's LMCache connector, which the parts of ours call, and its state in this process."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from kserve_lmcache.compat.lmcache import copy_path
from kserve_lmcache.compat.lmcache import engine as lmcache_engine
from kserve_lmcache.connector.copy.pages import pages_of
from kserve_lmcache.connector.cpu_affinity import use_all_cores
from kserve_lmcache.connector.inprocess.block_connector import BlockConnector
from kserve_lmcache.connector.requirements import check_supported, copy_of
from kserve_lmcache.identity.namespace import NAMESPACE

if TYPE_CHECKING:
    from lmcache.integration.vllm.vllm_v1_adapter import LMCacheConnectorV1Impl
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


class StockConnector:
    """VLLM's LMCache connector in this process.

    Attributes:
        connector: vLLM's connector.

    Raises:
        NotImplementedError: the connector does not support the engine.
        Exception: LMCache cannot start.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        self.connector = _create(vllm_config, role, kv_cache_config)

    @property
    def adapter(self) -> LMCacheConnectorV1Impl:
        """LMCache's own part of the connector."""
        return lmcache_engine.adapter_of(self.connector)

    def stop(self) -> None:
        """Flush and stop LMCache, whose threads would keep the process from exiting."""
        lmcache_engine.stop(self.adapter)


def _create(
    vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
) -> LMCacheConnectorV1:
    lmcache_config = lmcache_engine.process_config()
    check_supported(vllm_config, kv_cache_config, lmcache_config)
    named, device = _named(vllm_config), vllm_config.device_config.device_type
    copies_blocks = copy_of(vllm_config) == "blocks"
    with use_all_cores(device):
        if copies_blocks:
            copy_path.ask_every_worker(vllm_config)
        if copies_blocks and role == KVConnectorRole.WORKER:
            copies = BlockConnector(pages_of(kv_cache_config), lmcache_config.chunk_size)
            copy_path.create_engine(named, copies, copies.bytes_per_token)
        return LMCacheConnectorV1(named, role, kv_cache_config)


def _named(vllm_config: VllmConfig) -> VllmConfig:
    """The configuration with the namespace in place of the model's name.

    LMCache puts this name into the keys.
    """
    named = copy.copy(vllm_config)
    named.model_config = copy.copy(vllm_config.model_config)
    named.model_config.model = vllm_config.kv_transfer_config.kv_connector_extra_config[NAMESPACE]
    return named
