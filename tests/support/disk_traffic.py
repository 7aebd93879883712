"""Traffic of a simulated engine that keeps its cache on a disk, as a process of its own.

    python -m tests.support.disk_traffic DIRECTORY BYTES MODEL

It asks for prompts until its input ends, half of them the same few, half of them new; and prints
a line of JSON for each answer.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from kserve_lmcache.config import engine_file
from kserve_lmcache.config.stores import Disk
from kserve_lmcache.config.tier_limits import TierLimits

CHUNKS = 6
FEW = 8  # prompts that come again and again


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        again: whether the prompt is one of the few.
        right: whether it is what it must be.
        hit: how much of the prompt's whole chunks came from the disk, up to 1.
        faults: exceptions that the connector answered for, so far.
        disk: the report of the disk tier.
        at: when it came, as :func:`time.monotonic` has it.
    """

    again: bool
    right: bool
    hit: float
    faults: dict[str, int]
    disk: dict[str, Any]
    at: float


class Traffic:
    """What a process has said so far."""

    def __init__(self, process: Popen[str]) -> None:
        self.answers: list[Answer] = []
        self._process = process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, count: int, seconds: float = 30) -> list[Answer]:
        """The next ``count`` answers, that is of requests sent from now on."""
        begin = len(self.answers) + 1
        deadline = time.monotonic() + seconds
        while len(self.answers) < begin + count:
            assert self._process.poll() is None, "the process ended"
            assert time.monotonic() < deadline, f"only {len(self.answers) - begin} answers came"
            time.sleep(0.01)
        return self.answers[begin : begin + count]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self.answers.append(Answer(**json.loads(line)))


@contextmanager
def disk_traffic(
    prefix: tuple[str, ...], directory: Path, max_bytes: int, model: Path, log: Path
) -> Iterator[Traffic]:
    """The process, from its first answer on.

    Args:
        prefix: stands before the command.
        directory: of the disk tier, as the process sees it.
        max_bytes: that the tier may hold.
        model: directory for the model's configuration.
        log: file for what else it says.
    """
    name = __spec__.name if __spec__ is not None else "tests.support.disk_traffic"
    command = [*prefix, sys.executable, "-m", name, str(directory), str(max_bytes), str(model)]
    with (
        log.open("w") as said,
        Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, text=True) as it,
    ):
        traffic = Traffic(it)
        try:
            traffic.wait_for(1, seconds=120)
            yield traffic
        finally:
            assert it.stdin is not None
            it.stdin.close()
        assert it.wait(30) == 0, log.read_text()[-3000:]


def _prompt(number: int) -> list[int]:
    from tests.support.simulated_engine import CHUNK, VOCABULARY

    chance = random.Random(number)
    return [chance.randrange(VOCABULARY) for _ in range(CHUNKS * CHUNK + 9)]


def _run(directory: Path, max_bytes: int, model: Path) -> None:
    from tests.support.simulated_engine import BLOCK, CHUNK, continuation, simulated

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    file = model / "lmcache.yaml"
    values = {"local_disk": str(directory), "max_local_disk_size": max_bytes / 2**30}
    disk = Disk((str(directory),), max_bytes)
    engine_file.write(values, None, file, disk=(disk, TierLimits(lookup=1, load=5, ttl=0)))
    chance, new = random.Random(0), FEW
    with simulated(model, lmcache={"CONFIG_FILE": str(file), "LOCAL_CPU": "false"}) as engine:
        _, worker = engine.parts
        while not ended.is_set():
            again = chance.random() < 0.5
            new += 1
            prompt = _prompt(chance.randrange(FEW) if again else new)
            engine.hits = engine.failed = 0
            said = engine.ask(f"request {new}", prompt)
            engine.forget_local()
            answer = Answer(
                again,
                said == continuation(prompt, len(said)) and not engine.worker.wrong,
                (engine.hits - engine.failed * BLOCK) / (CHUNKS * CHUNK),
                engine.errors(),
                worker.state()["tiers"]["disk"],
                time.monotonic(),
            )
            print(json.dumps(asdict(answer)), flush=True)
        os._exit(0)  # to stop LMCache takes longer than all faults


if __name__ == "__main__":
    _run(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
