"""Asks servers about their caches, by the routes of the group ``cache``.

Standard library alone, as for all commands that run beside a server.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from kserve_lmcache.errors import KServeLMCacheError, UsageError
from kserve_lmcache.redaction import redact_urls

# The paths of the OpenAI API: KServe's, and everybody else's.
_PREFIXES = ("/openai/v1", "/v1")
_SECONDS = 600.0  # without a byte; a prefetch may compute a long prompt


class CacheServerRefusedError(KServeLMCacheError):
    """A server answered with an error, or did not answer."""


class CacheClient:
    """One server.

    Args:
        url: of the server, or of its OpenAI API if that has another path.
        headers: of every request.
        ca_file: certificates that are trusted beside the system's.

    Raises:
        UsageError: the URL is none, or the file cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], ca_file: str | None = None) -> None:
        self.url = url.rstrip("/")
        given = {**headers, "Content-Type": "application/json"}
        self._headers = {name: value.encode("utf-8") for name, value in given.items()}
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{redact_urls(url)!r} is not http://HOST:PORT")
        self._tls = ssl.create_default_context()
        try:
            if ca_file:
                self._tls.load_verify_locations(cafile=ca_file)
        except OSError as error:
            raise UsageError(f"--ca-file {ca_file} cannot be used: {error.strerror}") from None

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The server's answer.

        Args:
            method: of the request.
            path: below ``/v1/cache``.
            body: sent as JSON; ``None`` for no body.

        Raises:
            CacheServerRefusedError: the server refuses, or does not answer.
        """
        own = urlsplit(self.url).path
        for prefix in [own] if own else _PREFIXES:
            status, text = self._sent(method, f"{prefix}/cache{path}", body)
            if not _has_no_route(status, text):
                break
        if status != HTTPStatus.OK:
            raise CacheServerRefusedError(f"{redact_urls(self.url)}: {_message(status, text)}")
        return json.loads(text)

    def _sent(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        parts = urlsplit(self.url)
        place = (parts.hostname or "", parts.port)
        connection = (
            HTTPSConnection(*place, timeout=_SECONDS, context=self._tls)
            if parts.scheme == "https"
            else HTTPConnection(*place, timeout=_SECONDS)
        )
        try:
            connection.request(
                method, path, None if body is None else json.dumps(body), self._headers
            )
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise CacheServerRefusedError(f"{redact_urls(self.url)}: {reason}") from None
        finally:
            connection.close()


def _has_no_route(status: int, text: str) -> bool:
    """Whether nothing is served at the path. An adapter that is not known is another 404."""
    return status == HTTPStatus.NOT_FOUND and "Not Found" in text


def _message(status: int, text: str) -> str:
    if _has_no_route(status, text):
        return "has no such route: start it with --enable-routes=cache"
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"HTTP {status}"
