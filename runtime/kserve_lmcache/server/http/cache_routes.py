"""The routes that show and steer the cache (group ``cache`` of ``enable_routes``)."""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from kserve_lmcache.connector.steering import Answer
from kserve_lmcache.engine import cache_control
from kserve_lmcache.engine import tenant as tenants
from kserve_lmcache.engine.cache_control import CacheControl
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.engine.prompts import Prompt, Prompts
from kserve_lmcache.identity import tag as tags
from kserve_lmcache.identity.tag import Selection, digest
from kserve_lmcache.server.http.cache_access import Caller, caller_of
from kserve_lmcache.server.http.error_responses import PREFIX
from kserve_lmcache.tiers.guard.listing import Usage

PATH = "/v1/cache"
_LOCAL = "local_cpu"
# At a time. Prefetches compete with requests that somebody waits for; the others search the store.
_MOST = {"prefetches": 4, "deletions": 4, "overviews": 2}
_MAX_PIN_SECONDS = 24 * 60 * 60
_SELECTS = ("tenant", "tenant_digest", "cache_salt", "adapter", "adapter_digest")
_OF_PROMPTS = ("prompt", "messages")
_NO_STORE = {"cache-control": "no-store"}


def register(app: FastAPI, model: Any, key_file: str | None) -> None:
    """Add the routes below the prefix.

    Args:
        app: KServe's application.
        model: the one model, whose engine has started.
        key_file: has the key that allows everything; ``None`` where nobody has one.
    """
    routes = CacheRoutes(model, key_file)
    router = APIRouter(prefix=PREFIX, tags=["Cache"])
    router.add_api_route(PATH, routes.show, methods=["GET"])
    router.add_api_route(PATH, routes.delete, methods=["DELETE"])
    router.add_api_route(f"{PATH}/prefetch", routes.prefetch, methods=["POST"])
    router.add_api_route(f"{PATH}/pin", routes.pin, methods=["POST"])
    app.include_router(router)


class CacheRoutes:
    """Answers the routes. The arguments are those of :func:`register`."""

    def __init__(self, model: Any, key_file: str | None) -> None:
        self._model = model
        self._key_file = key_file
        self._prompts = Prompts(model)
        self._running: Counter[str] = Counter()

    async def show(self, request: Request) -> Response:
        """What is cached, by tenant and adapter: chunks, bytes and age in each tier."""
        caller = caller_of(request, self._key_file)
        selection = Selection() if caller.is_admin else Selection(tenant=digest(caller.tenant))
        async with self._place("overviews"):
            answers = await self._control.ask("usage", selection=selection)
        found, failures = cache_control.usages(answers)
        names = await self._prompts.adapter_names()
        rows: dict[tuple[str, str], dict[str, Usage]] = {}
        for tag, tiers in found.items():
            for tier, usage in tiers.items():
                row = rows.setdefault((tag.tenant, tag.adapter), {})
                row.setdefault(tier, Usage()).merge(usage)
        return _answer(
            {
                "entries": [
                    {
                        "tenant": tenant,
                        "adapter": adapter,
                        "adapter_names": names.get(adapter, []) if adapter else [],
                        "tiers": {
                            tier: {
                                "chunks": usage.chunks,
                                "bytes": usage.bytes,
                                "oldest_seconds": usage.oldest,
                            }
                            for tier, usage in tiers.items()
                        },
                    }
                    for (tenant, adapter), tiers in sorted(rows.items())
                ],
                "errors": failures,
            }
        )

    async def delete(self, request: Request) -> Response:
        """Delete what a tenant, a salt, an adapter or a prompt has in every tier."""
        caller, body = caller_of(request, self._key_file), await _body(request)
        if any(name in body for name in _OF_PROMPTS):
            prompt = await self._prompt(caller, body, request)
            selected: dict[str, Any] = {"tokens": prompt.tokens, "tag": prompt.tag}
        else:
            selected = {"selection": await self._selection(caller, body)}
        async with self._place("deletions"):
            name = "delete" if "selection" in selected else "delete_prompt"
            answers = await self._control.ask(name, **selected)
        deleted = cache_control.counts(answers)
        if failures := cache_control.failures(answers):
            what = "; ".join(f"{tier}: {reason}" for tier, reason in sorted(failures.items()))
            message = f"not everything was deleted ({what}); deleted chunks: {deleted}"
            raise RefusedError(HTTPStatus.BAD_GATEWAY, message)
        return _answer({"deleted": deleted})

    async def prefetch(self, request: Request) -> Response:
        """Load or compute a prompt, so that the local tier has it."""
        caller, body = caller_of(request, self._key_file), await _body(request)
        prompt = await self._prompt(caller, body, request, needs_owner=False)
        tokens, answers = await self._prefetched(prompt, body, request)
        return _answer({"tokens": tokens, _LOCAL: _of_all(answers)})

    async def pin(self, request: Request) -> Response:
        """Keep a prompt in each tier for some time. It is loaded or computed before."""
        caller, body = caller_of(request, self._key_file), await _body(request)
        seconds = _ttl(body)
        prompt = await self._prompt(caller, body, request)
        reason = secrets.token_hex(8)
        try:
            answers = await self._pinned(prompt, seconds, reason)
            if seconds and not _is_whole(answers):
                await self._prefetched(prompt, body, request)
                answers = await self._pinned(prompt, seconds, reason)
            if seconds and any(told.get("is_full") for each in answers for told in each.values()):
                message = "no more may be pinned: half of a tier is the most. Pin less, or wait"
                raise RefusedError(HTTPStatus.INSUFFICIENT_STORAGE, message)
        except Exception:
            with suppress(RefusedError):  # the first error is the one to tell
                await self._control.ask(
                    "unpin", tokens=prompt.tokens, tag=prompt.tag, reason=reason
                )
            raise
        return _answer(
            {
                "until": time.time() + seconds if seconds else None,
                "bytes": cache_control.counts(answers, "bytes").get(_LOCAL, 0),
                "tiers": cache_control.counts(answers),
                "errors": cache_control.failures(answers),
            }
        )

    @property
    def _control(self) -> CacheControl:
        control: CacheControl | None = self._model.cache_control
        if control is None:
            raise RefusedError(HTTPStatus.NOT_IMPLEMENTED, "the KV cache is not offloaded")
        return control

    async def _pinned(self, prompt: Prompt, seconds: float, reason: str) -> list[Answer]:
        return await self._control.ask(
            "pin", tokens=prompt.tokens, tag=prompt.tag, seconds=seconds, reason=reason
        )

    async def _prefetched(
        self, prompt: Prompt, body: Mapping[str, Any], request: Request
    ) -> tuple[dict[str, int], list[Answer]]:
        """The tokens by where they came from, and what the local tiers have then."""
        control = self._control
        fields = {name: value for name, value in body.items() if name not in ("tenant", "ttl")}
        async with self._place("prefetches"):
            tokens = await self._prompts.compute(fields, request)
        # The engine loads nothing that its own prefix cache has, and another tier may hold it.
        answers = await control.ask("prefetch", tokens=prompt.tokens, tag=prompt.tag)
        return tokens, answers

    @asynccontextmanager
    async def _place(self, what: str) -> AsyncIterator[None]:
        if self._running[what] >= _MOST[what]:
            message = f"{_MOST[what]} {what} run, and no more may at a time"
            raise RefusedError(HTTPStatus.TOO_MANY_REQUESTS, message)
        self._running[what] += 1
        try:
            yield
        finally:
            self._running[what] -= 1

    async def _prompt(
        self, caller: Caller, body: Mapping[str, Any], request: Request, needs_owner: bool = True
    ) -> Prompt:
        """The prompt of a body, of the tenant for which the caller acts from now on."""
        tenant = caller.acting_for(_text(body, "tenant"))
        if needs_owner:
            caller.require_owner(tenant, _text(body, "cache_salt"))
        tenants.TENANT.set(tenant)
        return await self._prompts.read(body, tenant, request)

    async def _selection(self, caller: Caller, body: Mapping[str, Any]) -> Selection:
        """What a body selects for deletion.

        Raises:
            RefusedError: it selects nothing, or what the caller may not delete.
        """
        if unknown := set(body) - {*_SELECTS, "all"}:
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"unknown fields: {', '.join(unknown)}")
        given = {name: text for name in _SELECTS if (text := _text(body, name)) is not None}
        for name, text in given.items():
            if not text:
                message = f"{name} is empty: leave it out, or name one"
                raise RefusedError(HTTPStatus.BAD_REQUEST, message, param=name)
        if "all" in body:
            if body["all"] is not True:
                message = "all must be true: leave it out, or name what to delete"
                raise RefusedError(HTTPStatus.BAD_REQUEST, message, param="all")
            caller.require_admin()
            if given:
                message = "all stands alone: leave it out, or the other fields"
                raise RefusedError(HTTPStatus.BAD_REQUEST, message)
            return Selection()
        if not given and not caller.tenant:
            message = f"say what to delete: {', '.join(_SELECTS)}, prompt, messages or all"
            raise RefusedError(HTTPStatus.BAD_REQUEST, message)
        adapter = given.get("adapter_digest")
        if "adapter" in given:
            adapter = digest(await self._prompts.adapter(given["adapter"]))
        if "tenant_digest" in given:
            caller.require_admin()
            return _checked(Selection(tenant=given["tenant_digest"], adapter=adapter))
        tenant = caller.acting_for(given.get("tenant"))
        caller.require_owner(tenant, given.get("cache_salt"))
        if "cache_salt" in given:
            salt = tenants.salt(tenant, given["cache_salt"])
            return _checked(Selection(salt=digest(salt or ""), adapter=adapter))
        return _checked(Selection(tenant=digest(tenant) if tenant else None, adapter=adapter))


def _checked(selection: Selection) -> Selection:
    for part in (selection.tenant, selection.adapter):
        if part is not None and part and not tags.is_digest(part):
            message = "a digest has 32 hexadecimal digits, as GET /v1/cache shows it"
            raise RefusedError(HTTPStatus.BAD_REQUEST, message)
    if selection == tags.EVERYTHING:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "name all to delete everything")
    return selection


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the body is not valid JSON") from error
    if not isinstance(body, dict):
        raise RefusedError(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return body


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"{name} must be a text", param=name)
    return value


def _ttl(body: Mapping[str, Any]) -> float:
    given = body.get("ttl")
    seconds = math.nan
    if isinstance(given, int | float) and not isinstance(given, bool):
        seconds = float(given)
    if not 0 <= seconds <= _MAX_PIN_SECONDS:
        message = f"ttl must be seconds, up to {_MAX_PIN_SECONDS}; 0 ends a pin"
        raise RefusedError(HTTPStatus.BAD_REQUEST, message, param="ttl")
    return seconds


def _of_all(answers: Sequence[Answer]) -> dict[str, int]:
    """What the local tiers of all workers have of a prompt."""
    return {name: cache_control.counts(answers, name).get(_LOCAL, 0) for name in ("chunks", "of")}


def _is_whole(answers: Sequence[Answer]) -> bool:
    """Whether the local tiers have all chunks, or can keep no more."""
    local = [each[_LOCAL] for each in answers]
    return all(told["chunks"] == told["of"] or told.get("is_full") for told in local)


def _answer(content: Mapping[str, Any]) -> Response:
    return JSONResponse(content, headers=_NO_STORE)
