"""The limits and rules for requests."""

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
    """The limits and rules of the server.

    Attributes:
        body_bytes: the largest size of a body.
        body_seconds: the longest time that a body may take to arrive.
        concurrent_requests: the largest number of requests at a time; ``None`` for any number.
        request_seconds: the longest duration of a request; ``None`` for any duration.
        api_keys: the accepted bearer tokens; empty when requests need no token.
        cors: arguments of Starlette's ``CORSMiddleware``; empty for no CORS headers.
        tenant_header: the header whose value keeps the caches of tenants apart.
        tenant_required: whether a request for inference must have the header.
        cache_admin_key_file: has the key that allows the routes of the cache everything.
        offloads: returns whether the KV cache is offloaded now.
        header_count: the largest number of header fields.
        header_bytes: the largest size of all header fields together.
    """

    body_bytes: int = 64 * 2**20
    body_seconds: float = 60.0
    concurrent_requests: int | None = None
    request_seconds: float | None = None
    api_keys: tuple[str, ...] = ()
    cors: Mapping[str, Any] = field(default_factory=dict)
    tenant_header: str | None = None
    tenant_required: bool = False
    cache_admin_key_file: str | None = None
    offloads: Callable[[], bool] = lambda: True
    header_count: int = H11_MAX_HEADER_COUNT_DEFAULT
    header_bytes: int = H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT


def limits_of(
    args: Namespace, configuration: Configuration, offloads: Callable[[], bool]
) -> Limits:
    """The limits of flags and settings. API keys of the flag replace the variable's key."""
    return Limits(
        body_bytes=int(configuration.get("max_body_size") * GB),
        body_seconds=configuration.get("body_timeout"),
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
        tenant_required=configuration.get("tenant_required"),
        cache_admin_key_file=configuration.get("cache_admin_key_file"),
        offloads=offloads,
        header_count=args.h11_max_header_count or H11_MAX_HEADER_COUNT_DEFAULT,
        header_bytes=args.h11_max_incomplete_event_size or H11_MAX_INCOMPLETE_EVENT_SIZE_DEFAULT,
    )
