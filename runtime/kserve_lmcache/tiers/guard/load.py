"""A load of a prompt's chunks, which may end before the thread that runs it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from kserve_lmcache.tiers.guard.codec import (
    Buffer,
    Checksum,
    CorruptValueError,
    Header,
    Layout,
    decode_header,
)
from kserve_lmcache.tiers.guard.store import Store, ValueStream

T = TypeVar("T")
# Makes room for the payload of a layout, of so many bytes: what stands for the room, and its
# memory. ``None`` where there is no room.
MakeRoom = Callable[[Layout, int], tuple[T, memoryview] | None]


class Load(Generic[T]):
    """One load, which :meth:`finish` ends at any time while another thread runs it.

    Args:
        keys: of the chunks.
        make_room: for a payload. Nothing is written there after :meth:`finish` has returned.
        release: gives back room that is not needed: the payload is corrupt, or came too late.
        max_bytes: of a payload. A larger one is corrupt.

    Attributes:
        bytes: of the values that were taken.
        outcome: the counter for the reason why the load ended early.
        corruption: the check that a value failed.
    """

    def __init__(
        self,
        keys: Sequence[str],
        make_room: MakeRoom[T],
        release: Callable[[T], None],
        max_bytes: int,
    ) -> None:
        self.bytes = 0
        self.outcome = ""
        self.corruption = ""
        self._keys = keys
        self._make_room = make_room
        self._release = release
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._finished = False
        self._filling: list[T] = []  # the room that is being filled
        self._taken: list[T] = []

    def run(self, store: Store) -> None:
        """Takes chunks until one is missing or corrupt, or has no room."""
        values = store.read(self._keys)
        try:
            for key, value in zip(self._keys, values, strict=True):
                if self._finished or not self._take_one(key, value):
                    return
        finally:
            if close := getattr(values, "close", None):
                close()

    def finish(self) -> list[T]:
        """Returns the rooms that are filled. Those that are not are given back."""
        with self._lock:
            self._finished = True
        self._give_back()
        return self._taken

    def _take_one(self, key: str, value: ValueStream | None) -> bool:
        if value is None:
            return self._end("chunks_missing")
        try:
            begin = next(value.pieces, b"")
            header = decode_header(key, begin, value.size)
            if header.payload_size > self._max_bytes:
                raise CorruptValueError(f"the payload has more than {self._max_bytes} bytes")
            room = self._make_room(header.layout, header.payload_size)
            if room is None:
                return self._end("chunks_without_room")
            return self._fill(*room, header, value, memoryview(begin)[header.size :])
        except CorruptValueError as error:
            return self._end("chunks_corrupt", str(error))

    def _fill(
        self, room: T, memory: memoryview, header: Header, value: ValueStream, begin: Buffer
    ) -> bool:
        with self._lock:
            self._filling.append(room)
        try:
            if len(memory) != header.payload_size:
                raise CorruptValueError(
                    f"the payload has {header.payload_size} bytes, and its layout {len(memory)}"
                )
            checksum, place = Checksum(), 0
            for piece in itertools.chain([begin], value.pieces):
                checksum.add(piece)
                end = place + len(piece)
                if end > len(memory):
                    raise CorruptValueError(f"the payload has more than {len(memory)} bytes")
                with self._lock:
                    if self._finished:
                        return False
                    memory[place:end] = piece
                place = end
            checksum.check(header)
            with self._lock:
                if self._finished:
                    return False
                self._taken.append(self._filling.pop())
                self.bytes += value.size
                return True
        finally:
            self._give_back()

    def _give_back(self) -> None:
        """Releases the room that is being filled, if it was not taken.

        The garbage collector must not do it: that may happen in a thread that holds the
        allocator's lock, which would then wait for itself.
        """
        with self._lock:
            filling, self._filling = self._filling, []
        for room in filling:
            self._release(room)

    def _end(self, outcome: str, corruption: str = "") -> bool:
        with self._lock:
            if not self._finished:  # else nobody waits for it, and its connection may be cut
                self.outcome, self.corruption = outcome, corruption
        return False
