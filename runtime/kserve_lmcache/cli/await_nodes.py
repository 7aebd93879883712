"""Waits on the head of a service on many nodes until all nodes have joined Ray's cluster.

``python -m kserve_lmcache.cli.await_nodes COUNT`` runs before the server, which would wait for the
workers as well, and would not say for what. It imports neither vLLM nor torch.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

from kserve_lmcache.server import termination_log

_POLL_SECONDS = 2.0
# How long workers may take before their absence needs an explanation, and how often it is repeated.
PATIENCE_SECONDS = 120.0


def await_nodes(
    count: int,
    joined: Callable[[], int],
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when as many nodes have joined, the head among them.

    Args:
        count: how many nodes the service has.
        joined: tells how many have joined.
        say: gets a sentence whenever somebody should look.
    """
    said = clock()
    while (nodes := joined()) < count:
        if clock() - said >= PATIENCE_SECONDS:
            said = clock()
            say(explanation(nodes, count, os.environ.get("INFERENCE_SERVICE_NAME", "NAME")))
        sleep(_POLL_SECONDS)


def explanation(nodes: int, count: int, service: str) -> str:
    """Why the head waits, and where to look."""
    return (
        f"{nodes} of {count} nodes have joined Ray's cluster, and the head waits for the others. "
        f"Look at the workers: kubectl get pods,deployments,services "
        f"-l serving.kserve.io/inferenceservice={service}. If there is no Deployment "
        f"{service}-predictor-worker, KServe's controller has deleted it: KServe 0.20 does "
        "(kserve#6113), 0.19 does not."
    )


def _joined() -> int:
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def _say(text: str) -> None:
    """Log it, and write it where ``kubectl describe pod`` shows it after the container's end."""
    print(text, flush=True)
    termination_log.write(text)


def main(count: str) -> None:
    """Wait for the nodes of the cluster whose head runs on this machine."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    await_nodes(int(count), _joined, _say)
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
