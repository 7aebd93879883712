"""Serves the routes below the prefix at the root as well (setting ``root_routes``).

The middleware moves the path of a request below the prefix. All that comes after it sees one path:
the API keys, the errors, the routes.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from kserve_lmcache.server.http.error_responses import PREFIX, is_openai

# Pages of KServe's application. Those of vLLM's are below the prefix.
_PAGES = ("/openapi.json", "/docs", "/docs/oauth2-redirect")


def below_prefix(path: str, prefix: str = PREFIX) -> str:
    """The path below the prefix that serves a path of the root; KServe's paths stay as they are."""
    if not prefix or path in _PAGES or is_openai(path, prefix) or not is_openai(path, ""):
        return path
    return prefix + path


class RootRoutes:
    """Moves requests at the root below the prefix. It runs before all other middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] in ("http", "websocket"):
            path = below_prefix(scope["path"])
            if path != scope["path"]:
                raw = PREFIX.encode() + scope.get("raw_path", scope["path"].encode())
                scope = {**scope, "path": path, "raw_path": raw}
        await self.app(scope, receive, send)
