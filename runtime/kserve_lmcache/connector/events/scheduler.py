"""The thread in the scheduler's process that announces what the tiers hold."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kserve_lmcache.compat import vllm_events
from kserve_lmcache.connector.events.chunks import Prompt
from kserve_lmcache.connector.events.journal import chunks_in, record
from kserve_lmcache.connector.events.ledger import Announcements, Change, Ledger
from kserve_lmcache.connector.events.publisher import TruePublisher, events_of
from kserve_lmcache.connector.events.socket import Changes, Receiver, address
from kserve_lmcache.connector.isolation import tag_of, tag_suffix
from kserve_lmcache.connector.reporter import configuration_file
from kserve_lmcache.tiers.guard.daemon_threads import start_supervised

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    from kserve_lmcache.tiers.disk.journal import Journal

logger = init_logger(__name__)

# Computes LMCache's hashes of tokens.
Hash = Callable[[list[int]], list[str]]

_POLL_SECONDS = 0.5  # until an idle thread looks for prompts, and whether to end


class SchedulerEvents:
    """Announces what the tiers hold.

    Args:
        where: the address of the socket on which the workers' changes arrive.
        workers: the number of workers.
        chunk_tokens: the tokens of a chunk.
        block_size: the tokens of a block.
        spec: what vLLM's events say of the KV cache (:func:`.vllm_events.spec_of`).
        hash_tokens: computes LMCache's hashes of the chunks of a prompt.
        journal: remembers the chunks on the disk; ``None`` without a disk.

    Attributes:
        publisher: takes the events; ``None`` until vLLM has made it.
    """

    def __init__(
        self,
        where: str,
        workers: int,
        chunk_tokens: int,
        block_size: int,
        spec: dict[str, Any],
        hash_tokens: Hash,
        journal: Journal | None = None,
    ) -> None:
        self.publisher: TruePublisher | None = None
        self._workers = workers
        self._chunk_tokens = chunk_tokens
        self._block_size = block_size
        self._spec = spec
        self._hash_tokens = hash_tokens
        self._journal = journal
        self._ledger = Ledger(workers)
        self._announcements = Announcements()
        self._listed: set[int] = set()
        self._prompts: deque[tuple[Prompt, list[str] | None]] = deque()
        self._where = where
        self._ending = threading.Event()
        self._is_logged = False
        self._thread = start_supervised("kv-events", self._run, self._log)

    def make_publisher(self, *arguments: Any, **options: Any) -> TruePublisher:
        """The publisher that vLLM asks for."""
        self.publisher = TruePublisher(*arguments, **options)
        return self.publisher

    def add(self, request: Request, hashes: Sequence[str] | None = None) -> None:
        """Take the chunks of a request. Called in a step of the engine: never raises or waits.

        Args:
            request: as :class:`.isolation.Isolation` has marked it.
            hashes: LMCache's hashes of its chunks; ``None``: the thread computes them.
        """
        try:
            if (prompt := self._prompt(request, hashes is None)) is not None:
                self._prompts.append((prompt, None if hashes is None else list(hashes)))
        except Exception as error:
            self._log(error)

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join(2 * _POLL_SECONDS)

    def _prompt(self, request: Request, is_hashed_here: bool) -> Prompt | None:
        if request.prompt_embeds is not None or (is_hashed_here and request.mm_features):
            return None  # what is hashed is more than the tokens
        block_hashes, adapter = list(request.block_hashes), request.lora_request
        return Prompt(
            tag_suffix(tag_of(request)),
            request.all_token_ids[: len(block_hashes) * self._block_size],
            block_hashes,
            vllm_events.extra_keys(request, len(block_hashes), self._block_size),
            adapter and adapter.adapter_id,
            adapter and adapter.name,
        )

    def _run(self) -> None:
        receiver = Receiver(self._where)
        try:
            if self._journal is not None:
                for name, chunk in chunks_in(self._journal):
                    self._ledger.most_loose += 1  # the disk's are known before the workers tell
                    self._publish(self._ledger.learn(name, chunk))
            while not self._ending.is_set():
                changes = receiver.receive(_POLL_SECONDS)
                self._learn()
                if changes is not None:
                    self._take(changes)
        finally:
            receiver.close()

    def _learn(self) -> None:
        size = self._block_size
        while self._prompts:
            prompt, hashes = self._prompts.popleft()
            if hashes is None:
                hashes = self._hash_tokens(list(prompt.tokens))
            external = vllm_events.external_hashes(prompt.block_hashes)
            prompt = dataclasses.replace(prompt, block_hashes=external)
            for name, chunk in prompt.chunks(hashes, self._chunk_tokens, size, self._ledger.knows):
                self._publish(self._ledger.learn(name, chunk))

    def _take(self, message: Changes) -> None:
        changes: list[Change] = []
        for tier, name, present in message.entries:
            changes += self._ledger.note(message.rank, tier, name, present)
        self._publish(changes)
        if message.listed and self._journal is not None:
            self._listed.add(message.rank)
            if len(self._listed) == self._workers:
                self._journal.keep(self._ledger.held("disk"))

    def _publish(self, found: Iterable[Change]) -> None:
        if not (changes := list(found)):
            return
        if self._journal is not None:
            record(self._journal, [change for change in changes if change.tier == "disk"])
        while self.publisher is None and not self._ending.is_set():
            self._ending.wait(0.01)  # vLLM makes it right after its connector
        events = events_of(self._announcements.of(changes), self._block_size, self._spec)
        if events and self.publisher is not None and self.publisher.is_open:
            self.publisher.publish(vllm_events.KVEventBatch(ts=time.time(), events=events))

    def _log(self, error: Exception) -> None:
        level = logger.debug if self._is_logged else logger.error
        self._is_logged = True
        level("The KV-cache events of the tiers failed, and may be incomplete: %r", error)


def directory() -> Path | None:
    """The folder that the processes of the server share; ``None`` without one."""
    file = configuration_file()
    return None if file is None else file.parent


def scheduler_events(
    vllm_config: VllmConfig,
    kv_cache_config: KVCacheConfig,
    chunk_tokens: int,
    hash_tokens: Hash,
    journal: Journal | None,
) -> SchedulerEvents | None:
    """The events of this engine; ``None`` where nobody wants them.

    Args:
        vllm_config: the engine's; changed in place.
        kv_cache_config: the engine's.
        chunk_tokens: the tokens of a chunk.
        hash_tokens: computes LMCache's hashes of the chunks of a prompt.
        journal: remembers the chunks on the disk; ``None`` without a disk.
    """
    if not vllm_events.are_wanted(vllm_config) or (folder := directory()) is None:
        return None
    parallel = vllm_config.parallel_config
    events = SchedulerEvents(
        address(folder, parallel.data_parallel_rank),
        parallel.world_size,
        chunk_tokens,
        vllm_config.cache_config.block_size,
        vllm_events.spec_of(kv_cache_config),
        hash_tokens,
        journal,
    )
    vllm_events.use_publisher(vllm_config, events.make_publisher)
    return events
