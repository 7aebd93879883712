"""A worker's side of a load."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from kserve_lmcache.connector.metadata import Load, Step
from kserve_lmcache.connector.traces import Headers


class LoadResults:
    """What became of this step's loads: a block is loaded when that was seen, and never else."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._missing: dict[str, Collection[int]] = {}

    def begin(self, step: Step) -> None:
        """A step begins."""
        self._step = step
        self._missing = {}

    def end(self) -> None:
        """The step is over, and its outcome was asked for."""
        self._step = None

    @property
    def all(self) -> Sequence[Load]:
        """Of this step."""
        return self._step.loads if self._step is not None else ()

    @property
    def tokens(self) -> int:
        """What this step computes."""
        return self._step.tokens if self._step is not None else 0

    @property
    def dropped(self) -> Collection[str]:
        """Requests whose chunks LMCache need not hold any longer."""
        return self._step.dropped if self._step is not None else ()

    @property
    def traces(self) -> Mapping[str, Headers]:
        """Headers of this step's requests that are traced."""
        return self._step.traces if self._step is not None else {}

    def loaded(self, load: Load, missing: Collection[int]) -> None:
        """All of ``load`` is there, but for the blocks in ``missing``."""
        self._missing[load.request_id] = missing

    def settled(self) -> set[str]:
        """Requests that vLLM need not wait for after this step."""
        return {load.request_id for load in self.all}

    def failed(self) -> set[int]:
        """Blocks that vLLM has to compute."""
        failed: set[int] = set()
        for load in self.all:
            failed.update(self._missing.get(load.request_id, load.blocks))
        return failed
