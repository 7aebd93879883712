"""What can be wrong with a :class:`~tests.support.link.Link`, or with who answers behind it."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import defaultdict

from tests.support.link import Behaviour, Lane


class NeverAnswers(Behaviour):
    """Accepts connections and takes no more than fits into the buffers; at the end it resets."""

    def carry(self, lane: Lane, data: bytes) -> None:
        del lane, data
        self.ended.wait()
        raise ConnectionResetError


class Trickle(Behaviour):
    """Answers come one byte every ``seconds``; at the end the rest comes at once."""

    def __init__(self, seconds: float = 1.0) -> None:
        super().__init__()
        self._seconds = seconds

    def carry(self, lane: Lane, data: bytes) -> None:
        position = 0
        if lane.is_answer:
            while position < len(data) and not self.ended.wait(self._seconds):
                lane.send(data[position : position + 1])
                position += 1
        lane.send(data[position:])


class ResetInAnswer(Behaviour):
    """Each connection is reset once it has answered ``after`` bytes."""

    def __init__(self, after: int = 100_000) -> None:
        super().__init__()
        self._room: dict[Lane, int] = defaultdict(lambda: after)

    def carry(self, lane: Lane, data: bytes) -> None:
        if lane.is_answer:
            room = self._room[lane]
            self._room[lane] -= len(data)
            if len(data) > room:
                lane.send(data[:room])
                time.sleep(0.05)  # a reset takes with it what has not left yet
                raise ConnectionResetError
        lane.send(data)


class Lossy(Behaviour):
    """A long and bad way: each segment takes ``delay`` seconds, and some of them much longer.

    What TCP makes of lost packets is what is copied here: a lost segment comes after a
    retransmission time-out, which doubles each time that it is lost again; those behind it wait
    for it; and only a few segments are under way at a time, as losses keep the window small.

    Args:
        delay: of each segment, each way, in seconds.
        loss: the share of segments that is lost.
        timeout: until the first retransmission, in seconds; 0.2 is the least that Linux waits.
        segment: its bytes; 64 KiB is what the loopback interface carries at once.
        window: how many segments are under way.
        seed: of what is lost.
    """

    def __init__(
        self,
        delay: float = 0.2,
        loss: float = 0.3,
        timeout: float = 0.2,
        segment: int = 1 << 16,
        window: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._delay, self._loss, self._timeout = delay, loss, timeout
        self._segment, self._window = segment, window
        self._random = random.Random(seed)
        self._ways: dict[Lane, queue.Queue[tuple[float, bytes]]] = {}

    def carry(self, lane: Lane, data: bytes) -> None:
        if lane not in self._ways:
            # One is with the thread that delivers.
            self._ways[lane] = queue.Queue(self._window - 1)
            threading.Thread(target=self._deliver, args=(lane,), daemon=True).start()
        for start in range(0, len(data), self._segment):
            if lane.connection.is_over:
                raise ConnectionResetError
            due = time.monotonic() + self._delay + self._late()
            self._ways[lane].put((due, data[start : start + self._segment]))

    def finish(self, lane: Lane) -> None:
        if lane in self._ways:
            self._ways[lane].join()

    def _late(self) -> float:
        """Seconds that a segment comes too late."""
        late, timeout = 0.0, self._timeout
        while self._random.random() < self._loss:
            late += timeout
            timeout *= 2
        return late

    def _deliver(self, lane: Lane) -> None:
        way = self._ways[lane]
        while True:
            try:
                due, data = way.get(timeout=0.2)
            except queue.Empty:
                if lane.connection.is_over:
                    return
                continue
            if (wait := due - time.monotonic()) > 0:
                self.ended.wait(wait)
            try:
                lane.send(data)
            except OSError:
                lane.connection.reset()
            way.task_done()
