"""What a tag says can be read back from a key and from a file's name, and selects its chunks."""

from __future__ import annotations

import itertools

import pytest

from kserve_lmcache.identity.tag import (
    EVERYTHING,
    Selection,
    Tag,
    digest,
    is_digest,
    of_key,
    parse,
    takes,
)
from kserve_lmcache.tiers.disk.directory import file_name, tag_of_file

PARTS = ("", digest("one"), digest("two"))
TAGS = [Tag(*parts) for parts in itertools.product(PARTS, repeat=3)]
KEY = "kv3-0a-1b@1@0@-1f2e@uint8"


def key_of(tag: Tag) -> str:
    return f"{KEY}@kserve%{tag}" if str(tag) else KEY


@pytest.mark.parametrize("tag", TAGS, ids=str)
def test_a_tag_is_read_back(tag: Tag) -> None:
    assert parse(str(tag)) == tag
    assert of_key(key_of(tag)) == tag
    assert tag_of_file(file_name(key_of(tag))) == tag


def test_every_key_has_a_file_of_its_own() -> None:
    assert len({file_name(key_of(tag)) for tag in TAGS}) == len(TAGS)


@pytest.mark.parametrize("text", ["0" * 32, "a.b.c", "..x", "*.*.*", "." * 5, f"{'0' * 33}.."])
def test_a_text_that_is_none(text: str) -> None:
    assert parse(text) is None
    key = f"{KEY}@kserve%{text}"
    assert takes(EVERYTHING, key)
    assert not takes(Selection(tenant=""), key)
    assert tag_of_file(file_name(key)) == Tag()  # as of an earlier version


def test_a_selection_has_the_tags_with_its_parts() -> None:
    for parts in itertools.product((None, *PARTS), repeat=3):
        selection = Selection(*parts)
        for tag in TAGS:
            own = (tag.salt, tag.tenant, tag.adapter)
            wanted = all(part in (None, of) for part, of in zip(parts, own, strict=True))
            assert (tag in selection) == takes(selection, key_of(tag)) == wanted
        assert selection.has_plain == (set(parts) <= {None, ""})


@pytest.mark.parametrize("name", ["x.kv", f"{'0' * 32}.tmp", f"{'0' * 32}-x.kv", "", "../a.kv"])
def test_other_files_are_none_of_the_tiers(name: str) -> None:
    assert tag_of_file(name) is None


def test_a_digest_is_one_of_a_text() -> None:
    assert digest("") == ""
    assert digest("a") != digest("A")
    assert is_digest(digest("\ud800\0"))
    assert not any(map(is_digest, ("", "0" * 31, "0" * 33, "g" * 32, f"{'0' * 32}\n")))
