"""Traces in the Mooncake format: one JSON object a line.

``{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …]}``

``timestamp`` is in milliseconds since the trace began. ``hash_ids`` are blocks of 512 tokens, the
last one cut where the input ends; equal ids in front are a shared prefix. It is the format of the
traces that https://github.com/kvcache-ai/Mooncake publishes (``FAST25-release/traces``; section 4
of https://arxiv.org/abs/2407.00079) and that vLLM and NVIDIA's AIPerf replay.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kserve_lmcache.bench.prompts import Segment
from kserve_lmcache.bench.workloads import Request
from kserve_lmcache.errors import UsageError

BLOCK = 512


def read(
    path: Path,
    speed: float = 1.0,
    limit: int | None = None,
    max_tokens: int | None = None,
) -> tuple[list[Request], int]:
    """The requests of a trace, in the order of their times, the first one at 0.

    Args:
        path: of the file.
        speed: 2 replays it twice as fast.
        limit: take no more lines than this.
        max_tokens: leave out requests with more tokens, prompt and answer together.

    Returns:
        The requests, and how many were left out for their length.

    Raises:
        UsageError: the file cannot be read, or a line is not of the format.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--trace={path} cannot be read: {error}") from error
    requests: list[Request] = []
    left_out = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and len(requests) + left_out >= limit:
            break
        request = _request(line, f"{path}:{number}")
        if max_tokens is not None and request.tokens + request.output_tokens > max_tokens:
            left_out += 1
        else:
            requests.append(request)
    if not requests:
        raise UsageError(f"--trace={path} has no request" + (" that short" if left_out else ""))
    requests.sort(key=lambda request: request.due or 0.0)
    first = requests[0].due or 0.0
    return [
        replace(request, due=((request.due or 0.0) - first) / speed) for request in requests
    ], left_out


def _request(line: str, where: str) -> Request:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is not a JSON object")
    timestamp = _number(entry, "timestamp", where)
    tokens = int(_number(entry, "input_length", where, least=1))
    output = int(_number(entry, "output_length", where))
    ids = entry.get("hash_ids", [])
    if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
        raise UsageError(f"{where}: hash_ids is not a list of whole numbers")
    return Request(
        _prompt(ids, tokens, where.rpartition(":")[2]), max(output, 1), due=timestamp / 1000
    )


def _number(entry: dict[str, Any], name: str, where: str, least: float = 0) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
        raise UsageError(f"{where}: {name} is {value!r}, not a number of at least {least:g}")
    return float(value)


def _prompt(ids: list[int], tokens: int, line: str) -> tuple[Segment, ...]:
    segments = [
        Segment(f"hash {each}", min(BLOCK, tokens - BLOCK * index))
        for index, each in enumerate(ids)
        if tokens > BLOCK * index
    ]
    # Some tools write no id for the last, partial block: it is nobody else's.
    rest = tokens - sum(segment.tokens for segment in segments)
    if rest:
        segments.append(Segment(f"rest of line {line}", rest))
    return tuple(segments)
