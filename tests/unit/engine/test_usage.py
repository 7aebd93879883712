"""The tiers of cached tokens are in the usage of an answer, and add up to its cached tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from kserve_lmcache.connector.usage import SOURCES, LoadedTokens
from kserve_lmcache.engine.usage import FIELD, NO_DETAILS, Details, take


def output(**sources: int) -> Any:
    return SimpleNamespace(kv_transfer_params={SOURCES: sources})


def answer(cached: int | None) -> Any:
    details = SimpleNamespace(cached_tokens=cached)
    return SimpleNamespace(usage=SimpleNamespace(prompt_tokens_details=details))


def added(response: Any) -> Any:
    return getattr(response.usage.prompt_tokens_details, FIELD, None)


@pytest.mark.parametrize(
    ("sources", "cached", "counts"),
    [
        ({"prefix_cache": 0, "local_cpu": 0}, 0, {"prefix_cache": 0, "local_cpu": 0}),
        ({"prefix_cache": 0, "local_cpu": 0}, None, {"prefix_cache": 0, "local_cpu": 0}),
        ({"prefix_cache": 16}, 16, {"prefix_cache": 16}),
        (
            {"prefix_cache": 32, "local_cpu": 0, "remote": 512},
            544,
            {"prefix_cache": 32, "local_cpu": 0, "remote": 512},
        ),
        # The last token of a whole prompt is computed.
        (
            {"prefix_cache": 256, "local_cpu": 128, "remote": 512},
            895,
            {"prefix_cache": 256, "local_cpu": 128, "remote": 511},
        ),
        # Nobody knows where they came from.
        ({"prefix_cache": 0, "local_cpu": 256}, 512, None),
        ({"prefix_cache": 512, "local_cpu": 0}, 256, None),
    ],
)
def test_the_counts_add_up(
    sources: dict[str, int], cached: int | None, counts: dict[str, int] | None
) -> None:
    details = Details()
    take(output(**sources))
    assert added(details.add_to(answer(cached))) == counts


def test_of_several_answers_one_that_fits_is_taken() -> None:
    details = Details()
    take(output(prefix_cache=0, local_cpu=0))
    take(output(prefix_cache=0, local_cpu=256))
    assert added(details.add_to(answer(256))) == {"prefix_cache": 0, "local_cpu": 256}


def test_clients_see_nothing_of_the_road() -> None:
    Details()
    ours, mixed, other = (
        output(prefix_cache=1),
        SimpleNamespace(kv_transfer_params={SOURCES: {"prefix_cache": 1}, "block": 1}),
        SimpleNamespace(kv_transfer_params={"block": 1}),
    )
    for each in (ours, mixed, other, SimpleNamespace(kv_transfer_params=None), object()):
        take(each)
    assert ours.kv_transfer_params is None
    assert mixed.kv_transfer_params == other.kv_transfer_params == {"block": 1}


def test_without_the_setting_nothing_is_added() -> None:
    take(output(prefix_cache=0, local_cpu=256))
    assert added(NO_DETAILS.add_to(answer(256))) is None


def test_requests_at_a_time_do_not_mix() -> None:
    async def request(count: int) -> Any:
        details = Details()
        await asyncio.sleep(0.01)
        take(output(prefix_cache=0, local_cpu=count))
        await asyncio.sleep(0.01)
        return added(details.add_to(answer(count)))

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(request, range(20)))

    assert asyncio.run(all_of_them()) == [
        {"prefix_cache": 0, "local_cpu": count} for count in range(20)
    ]


def streamed(chunks: list[Any], sources: dict[str, int]) -> list[Any]:
    async def stream() -> AsyncGenerator[Any, None]:
        for chunk in chunks:
            if chunk is None:
                take(output(**sources))
            else:
                yield chunk

    async def collected() -> list[Any]:
        return [chunk async for chunk in Details().add_to(stream())]

    return asyncio.run(collected())


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'), ensure_ascii=False)}\n\n"


def test_a_stream_has_them_in_its_usage_alone() -> None:
    usage = {"prompt_tokens": 300, "prompt_tokens_details": {"cached_tokens": 256}}
    text = event(choices=[{"delta": {"content": 'ü "prompt_tokens_details":{'}}], usage=None)
    first = event(choices=[], usage=usage)
    chunks = [text, first, None, text, first, "data: [DONE]\n\n"]
    found = streamed(chunks, {"prefix_cache": 0, "local_cpu": 256})
    assert found[:3] == [text, first, text]
    assert found[4] == "data: [DONE]\n\n"
    last = json.loads(found[3].removeprefix("data: "))
    assert last["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 256,
        FIELD: {"prefix_cache": 0, "local_cpu": 256},
    }
    assert found[3].endswith("\n\n")


def test_what_is_no_text_passes() -> None:
    chunk = object()
    assert streamed([None, chunk], {"prefix_cache": 0}) == [chunk]


def test_the_first_workers_count() -> None:
    one, other = LoadedTokens({"a": {"remote": 1}}), LoadedTokens({"b": {"remote": 2}})
    assert one.aggregate(other).requests == {"a": {"remote": 1}, "b": {"remote": 2}}
