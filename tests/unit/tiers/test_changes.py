"""The changes of a worker's tiers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kserve_lmcache.tiers.changes import TierChanges, chunk_of


def test_a_chunk_has_one_name_in_all_workers() -> None:
    assert chunk_of("model-x@2@0@ab12@half") == chunk_of("model-x@2@1@ab12@half") == "ab12"
    assert chunk_of("model@1@0@ab@half@kserve%tag") == "ab@kserve%tag"
    assert chunk_of("no key") == ""


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.booleans()),
            st.sampled_from([None, "repeat"]),
        )
    )
)
def test_what_is_told_adds_up_and_has_nothing_twice(trace: list[Any]) -> None:
    changes, there, told = TierChanges(), set(), set()
    tell = changes.of("local")
    for each in [*trace, None]:
        if each == "repeat":  # whom it was told forgets it
            changes.repeat()
            told = set()
            continue
        if each is not None:
            name, present = each
            (there.add if present else there.discard)(name)
            tell(f"m@1@0@{name}@half", present)
            continue
        assert changes.arrived.is_set() or not changes._changed
        for (tier, name), present in changes.take().items():
            assert tier == "local"
            assert (name in told) != present
            (told.add if present else told.discard)(name)
        assert told == there
