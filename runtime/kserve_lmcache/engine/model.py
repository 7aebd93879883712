"""The model of KServe's server: vLLM's engine with KV-cache offloading."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from kserve.protocol.rest.openai.types import ErrorResponse
from vllm.config import VllmConfig
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

from kserve_lmcache.cache_server.supervisor import Supervisor
from kserve_lmcache.compat import vllm
from kserve_lmcache.compat.vllm import init_app_state
from kserve_lmcache.config import engine_file
from kserve_lmcache.config.configuration import show
from kserve_lmcache.engine.base_model import choose_base
from kserve_lmcache.engine.cache_control import CacheControl
from kserve_lmcache.engine.client import TenantAsyncLLM
from kserve_lmcache.engine.errors import RefusedError
from kserve_lmcache.engine.failures import NO_CAUSE, NOBODY, Failures
from kserve_lmcache.engine.plan import OffloadPlan, differing_values, disabled_plan
from kserve_lmcache.engine.usage import NO_DETAILS, Details
from kserve_lmcache.errors import KServeLMCacheError
from kserve_lmcache.metrics import start_up_timing
from kserve_lmcache.metrics.snapshots import NOT_PROVEN, RECEIVED, Snapshots, read_files, workers
from kserve_lmcache.metrics.totals import Totals, add_up

logger = logging.getLogger(__name__)

# For the engine's processes to end, before vLLM kills them: by default 5 s. A worker waits for the
# loads that run (5 s), and writes its queue (2 s). Docker kills a container after 10 s.
_END_SECONDS = 8.0

_Base, BASE_REASON = choose_base()


class LMCacheModel(_Base):  # type: ignore[misc, valid-type]
    """The model, whose engine the server starts (:meth:`start_engine`).

    Args:
        args: the flags of the server.
        offload: the plan of offloading.
        engine_config: vLLM's configuration.
        build_app: makes vLLM's application from the engine's tasks and its model configuration.
        failures: the errors of the engine's processes.
    """

    def __init__(
        self,
        args: Namespace,
        offload: OffloadPlan,
        engine_config: VllmConfig,
        build_app: Callable[[Any, Any], FastAPI],
        failures: Failures = NOBODY,
    ) -> None:
        super().__init__(args.model_name, args)
        # KServe does not start without a model that is ``ready``. healthy() is the real state.
        self.ready = True
        self.offload = offload
        self.engine_config = engine_config
        self.started = False
        self.vllm_app: Any = None
        self._cache_server: Supervisor | None = None
        self._build_app = build_app
        self._failures = failures
        logger.debug("Model base class %s: %s", _Base.__module__, BASE_REASON)

    async def start_engine(self) -> None:
        """Start vLLM's engine, check that LMCache works in it, and build the OpenAI handlers.

        Raises:
            OffloadUnavailableError: LMCache does not work in a worker, and offloading is required.
            KServeLMCacheError: vLLM's engine did not start.
        """
        path = self.offload.engine_file
        if path is not None and self.offload.cache_server_bytes:
            self._cache_server = Supervisor(path, self.offload.cache_server_bytes)
        self.engine_client = self._create_engine()
        if path is not None and (failure := self._offload_failure(path)):
            self.engine_client.shutdown()
            self.engine_client = None
            self._stop_cache_server()
            RECEIVED.clear()
            self._failures.forget()
            self.offload, self.engine_config = disabled_plan(self.args, self.offload, failure)
            self.engine_client = self._create_engine()
        start_up_timing.reached(start_up_timing.ENGINE)
        await self._create_handlers()
        self.started = True
        logger.info("KV-cache offloading is %s", self.offload_state())

    async def create_completion(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/completions``."""
        details = self._details()
        return details.add_to(
            _response(await super().create_completion(request, raw_request, context))
        )

    async def create_chat_completion(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/chat/completions``."""
        details = self._details()
        return details.add_to(
            _response(await super().create_chat_completion(request, raw_request, context))
        )

    async def create_embedding(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/embeddings``."""
        return _response(await super().create_embedding(request, raw_request, context))

    async def create_rerank(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/rerank``."""
        return _response(await super().create_rerank(request, raw_request, context))

    def _details(self) -> Details:
        """What adds the tiers to the usage of an answer, where the setting asks for them."""
        return Details() if self.offload.configuration.get("usage_details") else NO_DETAILS

    async def find_adapter(self, name: str) -> None:
        """Let vLLM's resolvers look for an adapter of this name, where they may load adapters.

        An adapter that is found is in ``openai_serving_models.lora_requests`` then.

        Raises:
            RefusedError: the adapter was found and cannot be loaded.
        """
        if not vllm.loads_adapters():
            return
        found = await self.openai_serving_models.resolve_lora(name)
        error = getattr(found, "error", None)
        if error is not None and int(error.code) != HTTPStatus.NOT_FOUND:
            raise RefusedError(int(error.code), error.message, error.type, "model")

    def snapshots(self) -> Snapshots:
        """The newest snapshots of the engine's processes; reads their files."""
        if (path := self.offload.engine_file) is not None:
            RECEIVED.add(read_files(path.parent))
        if (shared := self.offload.cache_server) is not None:
            # What it counts is of all servers that use it.
            found = read_files(shared)
            RECEIVED.add({name: {**each, "metrics": []} for name, each in found.items()})
        return RECEIVED.all()

    def totals(self) -> Totals:
        """The metrics of all processes of the server."""
        return add_up(self.snapshots(), self.is_alive())

    def worker_moments(self) -> start_up_timing.Moments:
        """The moments of the first worker's start; empty without offloading."""
        for snapshot in workers(self.snapshots()):
            return dict(snapshot["worker"]["moments"])
        return {}

    @property
    def cache_control(self) -> CacheControl | None:
        """Asks the workers about their caches; ``None`` without offloading."""
        if (path := self.offload.engine_file) is None:
            return None
        parallel = self.engine_config.parallel_config
        return CacheControl(path.parent, parallel.world_size * parallel.data_parallel_size)

    def is_alive(self) -> bool:
        """Whether the engine's processes run."""
        return self.started and not self.engine_client.errored

    def cause_of_death(self) -> str:
        """Why the engine died, and what to do; empty when it is not known."""
        return self._failures.cause(exit_codes=vllm.exit_codes(self.engine_client))

    def off_reason(self) -> str | None:
        """The reason why offloading is off; ``None`` while the engine starts."""
        return self.offload.reason if self.started else None

    def offload_state(self) -> str:
        """The state of offloading for the log: on, with the tiers, or off, with the reason."""
        if not self.offload.enabled:
            return f"off: {self.offload.reason}"
        values = self.offload.configuration.redacted()
        size = values["max_local_cpu_size"]
        tiers = []
        if values["local_cpu"].value:
            if self.offload.cache_server is not None:
                tiers.append(f"local CPU tier of the cache server in {self.offload.cache_server}")
            else:
                place = " in a cache server" if self.offload.cache_server_bytes else ""
                tiers.append(f"local CPU tier of {size.value:g} GiB{place} ({size.source})")
        for name in ("local_disk", "remote_url"):
            if name in values and values[name].value:
                tiers.append(f"{name} {values[name].value} ({values[name].source})")
        return "on: " + ", ".join(tiers)

    async def healthy(self) -> bool:
        """Whether the engine has started and is not dead."""
        return self.is_alive()

    def stop_engine(self) -> None:
        """End the engine's processes."""
        self.started = False
        if self.engine_client is not None:
            self.engine_client.shutdown(timeout=_END_SECONDS)
        self._stop_cache_server()

    def _stop_cache_server(self) -> None:
        if self._cache_server is not None:
            self._cache_server.stop()

    def _create_engine(self) -> AsyncLLM:
        try:
            return TenantAsyncLLM.from_vllm_config(
                vllm_config=self.engine_config,
                usage_context=UsageContext.OPENAI_API_SERVER,
                enable_log_requests=self.args.enable_log_requests,
                disable_log_stats=self.args.disable_log_stats,
            )
        except Exception as error:
            cause = self._failures.cause(str(error)) or NO_CAUSE
            raise KServeLMCacheError(f"vLLM's engine did not start: {cause}") from error

    def _offload_failure(self, path: Path) -> str:
        """The reason why offloading fails in a process of the engine; empty when it works."""
        snapshots = self.snapshots()
        parallel = self.engine_config.parallel_config
        expected = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        reporting = [each for each in workers(snapshots) if "config" in each]
        if len(reporting) < expected:
            return f"only {len(reporting)} of {expected} workers have a KV connector of ours"
        schedulers = [each["scheduler"] for each in snapshots.values() if "scheduler" in each]
        failures = {each["failure"] for each in schedulers}
        for each in reporting:
            failure = each["worker"]["failure"]
            failures.add(failure or "; ".join(differing_values(path, each["config"])))
        if failures == {""}:
            self._log_proof([each["worker"]["proof"] for each in reporting])
            self._log_configuration(reporting[0]["config"], engine_file.read(path))
        return "; ".join(sorted(failures - {""}))

    def _log_proof(self, proofs: Sequence[str]) -> None:
        """Log what the workers proved at their start, as the line of a check."""
        lacking = [proof for proof in proofs if proof.startswith(NOT_PROVEN)]
        others = f"; {len(proofs) - 1} more workers likewise" if len(proofs) > 1 else ""
        if lacking:
            logger.warning("Check copy: warning, %s", lacking[0])
        else:
            logger.info("Check copy: ok, %s%s", proofs[0], others)

    def _log_configuration(self, used: Mapping[str, Any], told: Mapping[str, Any]) -> None:
        """Log the values that LMCache uses in a worker, each with its source.

        Args:
            used: LMCache's configuration, read back from a worker.
            told: the engine file. A value that it has in other words, such as the remote store's
                URL, is logged as it was asked for.
        """
        configuration = self.offload.configuration
        values = (
            f"{name} = {show(name, used[name] if told.get(name) == asked else asked)} "
            f"({configuration.source(name)})"
            for name, asked in configuration.lmcache_values().items()
        )
        logger.info("LMCache uses %s", "; ".join(values))

    async def _create_handlers(self) -> None:
        client = self.engine_client
        tasks = await client.get_supported_tasks()
        self.vllm_app = self._build_app(tasks, client.model_config)
        await init_app_state(client, self.vllm_app.state, self.args, tasks)
        state = self.vllm_app.state
        self.openai_serving_models = state.openai_serving_models
        self.openai_serving_chat = getattr(state, "openai_serving_chat", None)
        self.openai_serving_completion = getattr(state, "openai_serving_completion", None)
        self.openai_serving_embedding = getattr(state, "serving_embedding", None)
        self.serving_reranking = getattr(state, "serving_scores", None)


def _response(response: Any) -> Any:
    """The handler's response.

    Raises:
        RefusedError: the response is an error. It is answered as the errors of all other routes.
    """
    if not isinstance(response, ErrorResponse):
        return response
    error = response.error
    raise RefusedError(int(error.code), error.message, error.type, error.param or None)
