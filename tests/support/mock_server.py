"""The server's whole process with a mock engine.

Chats say what is to happen: ``sleep SECONDS``, or ``die`` for the engine.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kserve.logging import configure_logging

from kserve_lmcache.cli.arguments import parse_arguments
from kserve_lmcache.errors import EngineDiedError
from kserve_lmcache.server.http.limits import Limits
from kserve_lmcache.server.model_server import OffloadModelServer
from tests.support.http import MockModel


class MockEngineModel(MockModel):
    """Its engine is one flag."""

    def __init__(self) -> None:
        super().__init__()
        self.engine_client = SimpleNamespace(errored=False, shutdown=lambda: None)
        self.vllm_app.state.log_stats = False
        self.chat = self._obey

    async def start_engine(self) -> None:
        self.started = True

    async def _obey(self, request: Any, raw_request: Any) -> Any:
        word, _, seconds = request.messages[-1]["content"].partition(" ")
        if word == "die":
            self.engine_client.errored = True
        await asyncio.sleep(float(seconds or 0))
        return {"said": word}


def run(
    log: Path,
    port: int,
    grpc_port: int,
    leave_seconds: float,
    drain_seconds: float,
    exit_on_engine_death: bool,
) -> None:
    """All of a process's life; what it writes goes to the log."""
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    configure_logging()
    model = MockEngineModel()
    model.load()
    server = OffloadModelServer(
        parse_arguments(["--host=127.0.0.1"]),
        model,
        Limits(),
        leave_seconds,
        drain_seconds,
        exit_on_engine_death,
        http_port=port,
        grpc_port=grpc_port,
        enable_grpc=True,
    )
    try:
        server.start([model])
    except EngineDiedError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)
