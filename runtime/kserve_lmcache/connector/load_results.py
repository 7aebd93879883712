"""Load results: what a worker's connector reports to vLLM of the loads that have ended."""

from __future__ import annotations

from kserve_lmcache.connector.load_queue import Ended, LoadQueue, Run
from kserve_lmcache.connector.metadata import ConnectorMetadata, Load

_NO_STEP = ConnectorMetadata(None)


class LoadResults:
    """Begins the loads that a step asks for, and collects those that end until it is over.

    Every load that a step asks for ends in this step or in a later one. A load that nobody began,
    because LMCache failed, ends in its step with all its blocks missing.

    Args:
        queue: runs the loads.

    Attributes:
        step: the metadata of the current step; empty between two steps.
    """

    def __init__(self, queue: LoadQueue) -> None:
        self.step = _NO_STEP
        self.queue = queue
        self._not_begun: dict[str, Load] = {}
        self._ended: list[Ended] | None = None

    def begin_step(self, step: ConnectorMetadata) -> None:
        """Begin a step."""
        self.step = step
        self._not_begun.update({load.request_id: load for load in step.loads})
        self._ended = None

    def end_step(self) -> None:
        """End the step, after vLLM has asked for its results."""
        self.step = _NO_STEP

    def begin(self, load: Load, size: int, run: Run) -> None:
        """Begin a load. The arguments are those of :meth:`.LoadQueue.add`."""
        self.queue.add(load, size, run)
        del self._not_begun[load.request_id]

    def finished_requests(self) -> set[str]:
        """Requests whose load has ended, loaded or not."""
        return {each.load.request_id for each in self._collect()}

    def missing_blocks(self) -> set[int]:
        """Blocks of these loads that vLLM has to compute."""
        return {block for each in self._collect() for block in each.missing}

    def _collect(self) -> list[Ended]:
        """The loads that had ended when vLLM first asked in this step."""
        if self.step is _NO_STEP:
            return []
        if self._ended is None:
            self._ended = self.queue.take_ended()
            self._ended += [Ended(load, load.blocks) for load in self._not_begun.values()]
            self._not_begun = {}
        return self._ended
