"""Stand-ins for connectors of vLLM's that read KV from peers, beside ours.

Both promise ``tokens`` tokens of each request, and leave in the blocks what was there before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)


@dataclass
class Reads(KVConnectorMetadata):  # type: ignore[misc]
    """The blocks to read in this step, by request."""

    blocks: dict[str, list[int]] = field(default_factory=dict)


class _Peer(KVConnectorBase_V1):  # type: ignore[misc]
    """What both have in common.

    Attributes:
        tokens: a multiple of vLLM's block; 0 for none.
    """

    tokens = 0
    is_asynchronous = False

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size = vllm_config.cache_config.block_size
        self._new: dict[str, list[int]] = {}
        self._read: dict[str, list[int]] = {}

    # In the scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        tokens = max(0, type(self).tokens - num_computed_tokens)
        return tokens, self.is_asynchronous and tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            blocks = blocks.get_block_ids()[0]
            self._new[request.request_id] = blocks[: num_external_tokens // self._block_size]

    def build_connector_meta(self, scheduler_output: Any) -> Reads:
        new, self._new = self._new, {}
        return Reads(new)

    # In the worker

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._read |= self._get_connector_metadata().blocks

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass


class FailingPeer(_Peer):
    """Reads in the step that computes the request, and reports that all blocks failed."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        read, self._read = self._read, {}
        return {block for blocks in read.values() for block in blocks}


class LyingPeer(_Peer):
    """Reads before the request is computed, as NIXL's does, and gets KV of something else."""

    is_asynchronous = True

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        read, self._read = self._read, {}
        return None, set(read) or None
