"""Load results: a worker's record of the loads of one step."""

from __future__ import annotations

from collections.abc import Collection

from kserve_lmcache.connector.metadata import ConnectorMetadata, Load

_NO_STEP = ConnectorMetadata(None)


class LoadResults:
    """What the current step loads. A block counts as missing until its load is confirmed.

    Attributes:
        step: the metadata of the current step; empty between two steps.
    """

    def __init__(self) -> None:
        self.step = _NO_STEP
        self._missing: dict[str, Collection[int]] = {}

    def begin_step(self, step: ConnectorMetadata) -> None:
        """Begin a step."""
        self.step = step
        self._missing = {}

    def end_step(self) -> None:
        """End the step, after vLLM has asked for its results."""
        self.step = _NO_STEP

    def confirm(self, load: Load, missing: Collection[int]) -> None:
        """Record that all blocks of ``load`` but ``missing`` are loaded."""
        self._missing[load.request_id] = missing

    def finished_requests(self) -> set[str]:
        """Requests whose load ends in this step, loaded or not."""
        return {load.request_id for load in self.step.loads}

    def missing_blocks(self) -> set[int]:
        """Blocks of this step's loads that vLLM has to compute."""
        missing: set[int] = set()
        for load in self.step.loads:
            missing.update(self._missing.get(load.request_id, load.blocks))
        return missing
