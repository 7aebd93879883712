"""``GET /offload``: the status as JSON, and as a page for a browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

PATH = "/offload"


def register(app: FastAPI, status: Callable[[], dict[str, Any]]) -> None:
    """Answer with the document that ``status`` gives, or a browser with the page."""
    page = importlib.resources.files(__package__).joinpath("page.html").read_text()
    policy, lock = content_security_policy(page), asyncio.Lock()

    async def answer(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(
                page,
                headers={
                    "content-security-policy": policy,
                    "x-content-type-options": "nosniff",
                    "referrer-policy": "no-referrer",
                },
            )
        # In a thread: it goes through an hour of samples.
        async with lock:
            document = await asyncio.to_thread(status)
        return JSONResponse(document, headers={"cache-control": "no-store"})

    app.add_api_route(PATH, answer, methods=["GET"], include_in_schema=False)


def content_security_policy(page: str) -> str:
    """Allows the page's own script and style, and requests to the same server."""
    script, style = (_digest(page, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(page: str, tag: str) -> str:
    content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
