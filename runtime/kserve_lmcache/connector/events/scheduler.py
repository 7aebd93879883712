"""The thread in the scheduler's process that announces what the tiers hold."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from kserve_lmcache.compat import vllm_events
from kserve_lmcache.compat.lmcache.pictures import tokens_in_keys
from kserve_lmcache.compat.vllm import engine_number
from kserve_lmcache.connector.events.chunks import Prompt
from kserve_lmcache.connector.events.journal import chunks_in, record
from kserve_lmcache.connector.events.ledger import Announcements, Change, Ledger
from kserve_lmcache.connector.events.publisher import TiersCleared, TruePublisher, events_of
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
        # Prompts, and what gives LMCache's hashes of their chunks.
        self._prompts: deque[tuple[Prompt, Callable[[], list[str]]]] = deque()
        self._where = where
        self._ending = threading.Event()
        self._is_logged = False
        self._has_begun = False
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
            if request.prompt_embeds is not None:
                return  # what is hashed is more than the tokens
            prompt = self._prompt(request)
            if hashes is None:
                tokens = list(tokens_in_keys(request)[: len(prompt.tokens)])
                self._prompts.append((prompt, functools.partial(self._hash_tokens, tokens)))
            else:
                self._prompts.append((prompt, functools.partial(list, hashes)))
        except Exception as error:
            self._log(error)

    def stop(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join(2 * _POLL_SECONDS)

    def _prompt(self, request: Request) -> Prompt:
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
            if self._has_begun:
                self._tell_anew()
            self._has_begun = True
            if self._journal is not None:
                for name, chunk in chunks_in(self._journal):
                    if not self._ledger.knows(name, chunk.name):
                        self._ledger.most_loose += 1  # known before the workers tell
                        self._publish(self._ledger.learn(name, chunk))
            while not self._ending.is_set():
                changes = receiver.receive(_POLL_SECONDS)
                self._learn()
                if changes is not None:
                    self._take(changes)
        finally:
            receiver.close()

    def _tell_anew(self) -> None:
        """Let readers drop what the tiers hold, and tell what is known. The loop has failed.

        The workers tell theirs anew as well: they see that the socket is another.
        """
        self._announcements = Announcements()
        self._listed.clear()
        self._send([TiersCleared()])
        self._publish(self._ledger.all())

    def _learn(self) -> None:
        size = self._block_size
        while self._prompts:
            prompt, hashes = self._prompts.popleft()
            try:
                external = vllm_events.external_hashes(prompt.block_hashes)
                prompt = dataclasses.replace(prompt, block_hashes=external)
                known = self._ledger.knows
                chunks = list(prompt.chunks(hashes(), self._chunk_tokens, size, known))
            except Exception as error:  # the prompt's own; its chunks are not announced
                self._log(error)
                continue
            for name, chunk in chunks:
                self._publish(self._ledger.learn(name, chunk))

    def _take(self, message: Changes) -> None:
        changes: list[Change] = []
        if message.begins:
            self._listed.discard(message.rank)
            self._ledger.begin(message.rank)
        for tier, name, present in message.entries:
            changes += self._ledger.note(message.rank, tier, name, present)
        if message.listed:
            changes += self._ledger.end(message.rank)
            self._listed.add(message.rank)
        self._publish(changes)
        if message.listed and self._journal is not None and len(self._listed) == self._workers:
            self._journal.keep(self._ledger.held("disk"))

    def _publish(self, found: Iterable[Change]) -> None:
        if not (changes := list(found)):
            return
        if self._journal is not None:
            record(self._journal, [change for change in changes if change.tier == "disk"])
        self._send(events_of(self._announcements.of(changes), self._block_size, self._spec))

    def _send(self, events: Sequence[Any]) -> None:
        while self.publisher is None and not self._ending.is_set():
            self._ending.wait(0.01)  # vLLM makes it right after its connector
        if events and self.publisher is not None and self.publisher.is_open:
            self.publisher.publish(vllm_events.KVEventBatch(ts=time.time(), events=list(events)))

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
    events = SchedulerEvents(
        address(folder, engine_number(vllm_config)),
        vllm_config.parallel_config.world_size,
        chunk_tokens,
        vllm_config.cache_config.block_size,
        vllm_events.spec_of(kv_cache_config),
        hash_tokens,
        journal,
    )
    vllm_events.use_publisher(vllm_config, events.make_publisher)
    return events
