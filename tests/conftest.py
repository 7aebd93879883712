"""What holds for all tests."""

from __future__ import annotations

import gc
import os

# Minutes each, and about what seldom changes: with SLOW=1.
_SLOW = (
    "e2e/clients/test_schemathesis.py",
    "e2e/test_architectures.py",
    "e2e/test_bench.py",
    "e2e/test_kubernetes_examples.py",
    "e2e/test_numerics.py",
    "e2e/test_tensor_parallel.py",
    "integration/test_kubernetes_multinode.py",
)
collect_ignore = [] if os.environ.get("SLOW") else list(_SLOW)


def pytest_collection_finish() -> None:
    """LMCache collects garbage for each of its engines: a second each, among vLLM's modules."""
    gc.collect()
    gc.freeze()
