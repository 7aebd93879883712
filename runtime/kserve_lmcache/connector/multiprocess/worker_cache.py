"""The cache server as a worker uses it: copies of blocks to and from its shared memory."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.logger import init_logger

from kserve_lmcache.cache_server.messages import Objects, Row, Slots
from kserve_lmcache.cache_server.objects import fault_of, name_of, payload_begin, seal
from kserve_lmcache.cache_server.rpc import CacheServerError, Call, LateError
from kserve_lmcache.connector.caches import Loaded, OnError
from kserve_lmcache.connector.copy.form import form_of
from kserve_lmcache.connector.copy.paged_cache import PagedCache
from kserve_lmcache.connector.copy.pages import pages_of
from kserve_lmcache.connector.copy.transfer import Chunk, Transfer, transfer_of
from kserve_lmcache.connector.multiprocess.session import TIER, Connection, Session
from kserve_lmcache.connector.multiprocess.settings import Settings
from kserve_lmcache.connector.multiprocess.start_proof import ProvenChunk, prove
from kserve_lmcache.connector.multiprocess.work import Save, Source
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.snapshots import NOT_PROVEN
from kserve_lmcache.metrics.table import metric
from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from kserve_lmcache.connector.metadata import Load
    from kserve_lmcache.tiers.guard.load_cost import PrefillRate

logger = init_logger(__name__)

# Seconds. The engine starts in more than these, and the server in less.
_START_SECONDS = 30.0
# A step waits so long for what it asked before its computation.
_RESERVE_SECONDS = 0.05
_READ_SECONDS = 0.25
# Of calls that nobody waits for.
_BACKGROUND_SECONDS = 2.0


@dataclass(frozen=True)
class _Reservation:
    connection: Connection
    row: Row
    digests: Sequence[bytes]
    blocks: Sequence[Sequence[int]]
    call: Call
    began: float = field(default_factory=time.monotonic)

    def result(self) -> Slots:
        """The answer, for which no step waits longer than :data:`_RESERVE_SECONDS`.

        Raises:
            CacheServerError: there is none.
        """
        left = self.began + _RESERVE_SECONDS - time.monotonic()
        return cast(Slots, self.call.result(max(0, left)))


class MultiprocessWorkerCache:
    """Implements :class:`~kserve_lmcache.connector.caches.WorkerCache`."""

    _cache: PagedCache
    _transfer: Transfer
    _row: Row

    def __init__(self, vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> None:
        self._settings = Settings.of(vllm_config, kv_cache_config)
        self._vllm_config = vllm_config
        self._pages = pages_of(kv_cache_config)
        parallel = vllm_config.parallel_config
        self._rank = (parallel.rank, parallel.world_size)
        self._prefill: PrefillRate | None = None
        self._failure = ""
        self._form: Mapping[str, Any] = {}  # empty until the KV cache is there
        self._saves: Sequence[Save] = ()
        self._reservations: list[_Reservation] = []
        # One thread: the first that is complete is the first that others find.
        self._background = DaemonThreadPool("kv-save", 1)
        self._session = Session(self._settings.directory, maps=True, prefill_rate=self._rate)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self._settings.chunk_tokens

    @property
    def is_first(self) -> bool:
        """Whether this is the engine's first worker."""
        return bool(self._rank[0] == 0)

    @property
    def local_bytes(self) -> int:
        """The size of the local tier that this worker uses."""
        return self._settings.local_bytes

    @property
    def tier_names(self) -> tuple[str, ...]:
        """The names of the tiers below the local one."""
        return self._settings.tier_names

    def register(self, kv_caches: dict[str, torch.Tensor], on_error: OnError) -> str:
        """Use this KV cache from now on, and prove that what is stored comes back."""
        self._on_error = on_error
        self._cache = PagedCache.of(kv_caches, self._pages)
        self._chunk_blocks = self.chunk_tokens // self._settings.block_tokens
        self._transfer = transfer_of(self._cache, self._chunk_blocks)
        self._payload_bytes = self._chunk_blocks * self._cache.block_bytes
        self._payload_begin = payload_begin(self._payload_bytes)
        self._form = {
            "name": form_of(self._vllm_config, self._cache.form),
            "object_bytes": self._payload_begin + self._payload_bytes,
        }
        self._row = self._settings.row(self._rank, self._form)
        connection = self._session.wait(_START_SECONDS)
        start_up_timing.reached(start_up_timing.CACHED)
        self._background.submit(lambda: None)  # its thread is not bound to the core of the steps
        proof = self._prove(connection)
        start_up_timing.reached(start_up_timing.PROVEN)
        return proof

    def _prove(self, connection: Connection | None) -> str:
        if connection is None:
            self._failure = f"the cache server: {self._session.report()['reason']}"
            return f"{NOT_PROVEN}: {self._failure}"
        memory = functools.partial(self._object, connection)
        chunk = ProvenChunk(connection.client, self._row, memory, self._payload_bytes)
        return prove(self._cache, self._transfer, self._pages, chunk)

    def begin_step(self, work: Sequence[Save] | None) -> None:
        """Ask for room for the step's chunks. The computation hides the time of the answer."""
        self._saves, self._reservations = work or (), []
        connection = self._session.connection
        if connection is None:
            return
        for salt, saves in groupby(sorted(self._saves, key=_salt), key=_salt):
            of_salt = list(saves)
            self._reservations.append(
                self._reserve(
                    connection,
                    salt,
                    [digest for save in of_salt for digest in save.digests],
                    [blocks for save in of_salt for blocks in save.blocks],
                )
            )

    def start_load(self, forward_context: ForwardContext, **options: Any) -> None:
        """Do nothing: loads run beside the steps."""

    def wait_for_layer(self, layer_name: str) -> None:
        """Do nothing."""

    def save_layer(
        self,
        layer_name: str,
        kv_layer: torch.Tensor,
        attn_metadata: AttentionMetadata,
        **options: Any,
    ) -> None:
        """Do nothing: whole blocks of all layers are copied at once."""

    def save(self) -> None:
        """Copy the chunks that the step completed. They become visible in the background."""
        reservations, self._reservations = self._reservations, []
        for each in reservations:
            try:
                slots = each.result()
            except CacheServerError as error:
                if isinstance(error, LateError):
                    self._session.late(each.connection, "reserve")
                    self._withdraw_later(each)
                metric("dropped_failed_total", tier=TIER).inc(len(each.digests))
                continue
            metric("dropped_full_total", tier=TIER).inc(slots.dropped)
            self._store(each, slots.offsets)

    def _store(self, reservation: _Reservation, offsets: Sequence[int]) -> None:
        places = [
            (digest, offset, blocks)
            for digest, offset, blocks in zip(
                reservation.digests, offsets, reservation.blocks, strict=True
            )
            if offset >= 0
        ]
        connection = reservation.connection
        self._transfer.store(
            [Chunk(self._payload(connection, offset), blocks) for _, offset, blocks in places]
        )
        if places:
            self._background.submit(
                self._complete, connection, reservation.row, [(d, o) for d, o, _ in places]
            )

    def _complete(
        self, connection: Connection, row: Row, places: Sequence[tuple[bytes, int]]
    ) -> None:
        try:
            for digest, offset in places:
                memory = self._object(connection, offset)
                seal(name_of(row, digest), memory, self._payload_bytes)
            objects = Objects(row, [digest for digest, _ in places])
            # Awaited, so that an engine that ends leaves nothing behind that is not complete.
            self._session.begin(connection, "complete", objects, _BACKGROUND_SECONDS).result()
            metric("chunks_written_total", tier=TIER).inc(len(places))
            metric("written_bytes_total", tier=TIER).inc(len(places) * self._row.size)
        except CacheServerError:
            metric("dropped_failed_total", tier=TIER).inc(len(places))
        except Exception as error:
            self._on_error("save", error)

    def saved_tokens(self) -> Mapping[str, int]:
        """The number of tokens that :meth:`save` stores, by request."""
        return {each.request_id: len(each.digests) * self.chunk_tokens for each in self._saves}

    def drop_saves(self) -> None:
        """Store nothing in this step."""
        for each in self._reservations:
            self._withdraw_later(each)
        self._saves, self._reservations = (), []

    def _withdraw_later(self, reservation: _Reservation) -> None:
        """Give back what the server has reserved or will: nobody could store it for a minute."""
        reservation.call.then(functools.partial(self._withdraw, reservation))

    def _withdraw(self, reservation: _Reservation, call: Call) -> None:
        with suppress(CacheServerError):
            places = zip(reservation.digests, call.result().offsets, strict=True)
            objects = Objects(reservation.row, [digest for digest, place in places if place >= 0])
            self._session.begin(reservation.connection, "withdraw", objects, _BACKGROUND_SECONDS)

    def end_step(self) -> None:
        """End the step."""
        self._saves = ()

    def finished(self, requests: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """No request waits for a save."""
        return None, None

    def load_errors(self) -> set[int]:
        """There are none beside those of :meth:`load`."""
        return set()

    def load(self, load: Load) -> Loaded:
        """Load the blocks of a request."""
        source: Source = load.source
        connection = self._session.connection
        wanted = set(load.blocks)
        if connection is None:
            return Loaded(wanted)
        row = self._row_of(source.salt)
        objects = Objects(row, list(source.digests))
        try:
            call = self._session.begin(connection, "read", objects, _READ_SECONDS)
            slots: Slots = call.result()
        except CacheServerError:
            return Loaded(wanted)
        read = Objects(row, objects.digests[: len(slots.offsets)])
        corrupt: list[bytes] = []
        try:
            chunks = [*self._chunks(connection, source, slots.offsets)]
            self._transfer.load([chunk for chunk, _, _ in chunks])
            # After the copy, so that what changed during the copy is noticed as well.
            corrupt += self._corrupt(connection, row, chunks)
        finally:
            self._release(connection, read, corrupt)
        loaded = {
            block for chunk, digest, _ in chunks if digest not in corrupt for block in chunk.blocks
        }
        return Loaded(wanted - loaded, source.tiers)

    def _chunks(
        self, connection: Connection, source: Source, offsets: Sequence[int]
    ) -> Iterator[tuple[Chunk, bytes, int]]:
        """The chunks to copy, with their digests and offsets.

        VLLM computes the last token of a whole prompt. It has given no block for this token when
        the token is the first of a block: the chunk that holds it is left out then.
        """
        size, tokens = self._chunk_blocks, self._settings.block_tokens
        for number, (digest, offset) in enumerate(zip(source.digests, offsets, strict=False)):
            begin = (source.first + number) * size
            skip = max(0, source.computed_tokens // tokens - begin)
            blocks = source.blocks[begin + skip : begin + size]
            if skip + len(blocks) == size and blocks:
                yield Chunk(self._payload(connection, offset), blocks, skip), digest, offset

    def _corrupt(
        self, connection: Connection, row: Row, chunks: Sequence[tuple[Chunk, bytes, int]]
    ) -> Iterator[bytes]:
        """The digests of the chunks that are not what was stored."""
        for _, digest, offset in chunks:
            if fault := fault_of(name_of(row, digest), self._object(connection, offset)):
                logger.warning("A chunk of the cache server is corrupt and is deleted: %s", fault)
                metric("chunks_corrupt_total", tier=TIER).inc()
                yield digest

    def _release(self, connection: Connection, read: Objects, corrupt: list[bytes]) -> None:
        """Unlock what was read, and delete what is corrupt: it can be stored again then."""
        if read.digests:
            call = self._session.begin(connection, "release", read, _BACKGROUND_SECONDS)
            if corrupt:
                discarded = Objects(read.row, corrupt)
                call.then(functools.partial(self._discard, connection, discarded))

    def _discard(self, connection: Connection, objects: Objects, _: Call) -> None:
        self._session.begin(connection, "discard", objects, _BACKGROUND_SECONDS)

    def token_bytes(self) -> int:
        """Bytes of one token's KV in this worker."""
        return self._payload_bytes // self.chunk_tokens

    def unpin(self, requests: Iterable[str]) -> None:
        """Do nothing: a lookup holds nothing."""

    def set_metrics(self) -> None:
        """Do nothing: the server publishes its own."""

    def tiers(self) -> Mapping[str, Mapping[str, Any]]:
        """The local tier, which may be gone. The server reports those below."""
        return {TIER: self._session.report()}

    def set_prefill(self, prefill: PrefillRate) -> None:
        """Take what measures the speed at which the engine computes prompts."""
        self._prefill = prefill

    def effective_config(self) -> Mapping[str, Any]:
        """The configuration that is used, key by key."""
        return self._settings.values

    def steering(self, place: str, quotas: Mapping[str, int]) -> None:
        """Nothing steers a cache server, which other servers may use."""

    def form(self) -> Mapping[str, Any]:
        """What the scheduler's cache has to know of this worker's KV cache."""
        return self._form

    def failure(self) -> str:
        """Why the cache does not work in this process. A server that is gone comes back."""
        return self._failure

    def stop(self) -> None:
        """Call the server no more."""
        self._background.shutdown(wait=True)
        self._session.close()

    def _rate(self) -> float | None:
        return None if self._prefill is None else self._prefill.tokens_per_second

    def _reserve(
        self,
        connection: Connection,
        salt: str,
        digests: Sequence[bytes],
        blocks: Sequence[Sequence[int]],
    ) -> _Reservation:
        row = self._row_of(salt)
        call = self._session.begin(
            connection,
            "reserve",
            Objects(row, list(digests)),
            _BACKGROUND_SECONDS,
            patience=_RESERVE_SECONDS,
        )
        return _Reservation(connection, row, digests, blocks, call)

    def _row_of(self, salt: str) -> Row:
        return Row(self._row.model, self._row.rank, self._row.size, salt)

    def _object(self, connection: Connection, offset: int) -> memoryview:
        """The memory of an object.

        Raises:
            ValueError: it is not within the shared memory.
        """
        memory, size = connection.memory, self._row.size
        if memory is None or not 0 <= offset <= len(memory) - size:
            raise ValueError(f"an object of {size} bytes at {offset} is not in the shared memory")
        return memoryview(memory)[offset : offset + size]

    def _payload(self, connection: Connection, offset: int) -> torch.Tensor:
        memory = self._object(connection, offset)
        return torch.frombuffer(memory, dtype=torch.uint8)[self._payload_begin :]


def _salt(save: Save) -> str:
    return save.salt
