"""What a request is held against."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm import envs

from kserve_lmcache.compat.vllm import (
    H11_MAX_HEADER_COUNT_DEFAULT,
    H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT,
)
from kserve_lmcache.config.configuration import Configuration

GB = 2**30


@dataclass(frozen=True)
class Limits:
    """Limits and rules of the whole server.

    Attributes:
        body_bytes: the largest body.
        concurrent_requests: how many are answered at a time; ``None`` for any number.
        request_seconds: the longest that one may take; ``None`` for ever.
        api_keys: bearer tokens, one of which is needed; none when there are none.
        cors: arguments of Starlette's ``CORSMiddleware``; empty for no headers.
        tenant_header: whose value keeps caches apart.
        offloads: whether the rules about LMCache's keys hold now.
        header_count: the largest number of header fields.
        header_bytes: the largest size of all of them.
    """

    body_bytes: int = 64 * 2**20
    concurrent_requests: int | None = None
    request_seconds: float | None = None
    api_keys: tuple[str, ...] = ()
    cors: Mapping[str, Any] = field(default_factory=dict)
    tenant_header: str | None = None
    offloads: Callable[[], bool] = lambda: True
    header_count: int = H11_MAX_HEADER_COUNT_DEFAULT
    header_bytes: int = H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT


def limits_of(
    args: Namespace, configuration: Configuration, offloads: Callable[[], bool]
) -> Limits:
    """The limits that flags and settings ask for; a flag's key wins over the variable's."""
    return Limits(
        body_bytes=int(configuration.get("max_body_size") * GB),
        concurrent_requests=configuration.get("max_concurrent_requests"),
        request_seconds=configuration.get("request_timeout"),
        api_keys=tuple(key for key in (args.api_key or [envs.VLLM_API_KEY]) if key),
        cors={
            "allow_origins": args.allowed_origins,
            "allow_credentials": args.allow_credentials,
            "allow_methods": args.allowed_methods,
            "allow_headers": args.allowed_headers,
        },
        tenant_header=configuration.get("tenant_header"),
        offloads=offloads,
        header_count=args.h11_max_header_count or H11_MAX_HEADER_COUNT_DEFAULT,
        header_bytes=args.h11_max_incomplete_event_size or H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT,
    )
