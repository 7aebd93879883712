"""What a rule is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tests.packaging.pods import Document

# A finding without its rule's name: the document (and container) and the fault.
Fault = tuple[str, str]
Rule = Callable[[Sequence[Document]], Iterator[Fault]]
