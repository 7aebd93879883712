"""The pool of daemon threads."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool


def names() -> int:
    return sum(thread.name == "ours" for thread in threading.enumerate())


def test_an_event_loop_uses_the_pool() -> None:
    async def several() -> list[int]:
        return [*await asyncio.gather(*(asyncio.to_thread(pow, 2, each) for each in range(20)))]

    threads = DaemonThreadPool("ours", 4)
    loop = asyncio.new_event_loop()
    loop.set_default_executor(threads)
    try:
        assert loop.run_until_complete(several()) == [2**each for each in range(20)]
        assert 1 <= names() <= 4
        with pytest.raises(ZeroDivisionError):
            loop.run_until_complete(loop.run_in_executor(None, divmod, 1, 0))
    finally:
        loop.close()
        threads.shutdown(wait=True)
    assert names() == 0
    with pytest.raises(RuntimeError, match="has been shut down"):
        threads.submit(pow, 2, 2)


def test_idle_threads_are_reused_and_several_work_at_once() -> None:
    threads, release = DaemonThreadPool("ours", 3), threading.Event()
    for _ in range(5):
        assert threads.submit(pow, 2, 3).result(5) == 8
        time.sleep(0.05)  # until it is idle
    assert names() == 1
    running = [threads.submit(release.wait, 10) for _ in range(5)]
    time.sleep(0.2)
    assert names() == 3
    release.set()
    assert all(each.result(5) for each in running)
    threads.shutdown()
    assert names() == 0


def test_a_hanging_thread_does_not_block_the_exit() -> None:
    script = (
        "import threading\n"
        "from kserve_lmcache.tiers.guard.daemon_threads import DaemonThreadPool\n"
        "DaemonThreadPool('ours', 1).submit(threading.Event().wait)\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
