"""The table of the server's start."""

from __future__ import annotations

import subprocess
import sys
import time

from kserve_lmcache.metrics.start_up_timing import table

SERVER = {"process": 100.0, "imported": 105.0, "planned": 106.5, "engine": 120.0, "ready": 120.5}
WORKER = {
    "process": 106.6,
    "imported": 112.0,
    "loaded": 115.0,
    "cached": 116.0,
    "proven": 116.25,
    "remote tier answers": 115.25,
}


def lines(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        name, seconds = line.rsplit(maxsplit=2)[:2]
        found[name.strip()] = float(seconds)
    return found


def test_each_phase_lasts_until_the_next() -> None:
    found = lines(table(SERVER, WORKER))
    assert found.pop("ready after") == 20.5
    assert found.pop("beside it: the remote tier answers, from the weights on") == 0.25
    assert [*found.values()] == [5.0, 1.5, 5.5, 3.0, 1.0, 0.25, 3.75, 0.5]
    assert sum(found.values()) == 20.5


def test_what_was_not_reached_is_told_with_the_next() -> None:
    found = lines(table(SERVER, {}))
    assert [*found.values()] == [20.5, 5.0, 1.5, 13.5, 0.5]
    assert [name.count(";") for name in found] == [0, 0, 0, 4, 0]
    assert next(name for name in found if ";" in name).endswith("; warm-up")


def test_a_process_begins_when_the_kernel_says() -> None:
    probe = (
        "import time; time.sleep(0.5); from kserve_lmcache.metrics import start_up_timing as s;"
        "s.reached('a');"
        "time.sleep(0.2); s.reached('a'); m = s.moments(); print(m['a'] - m['process'])"
    )
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert 0.5 <= float(result.stdout) <= time.monotonic() - began - 0.19
