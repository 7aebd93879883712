"""KServe's data plane and repository, with answers that are true of a vLLM engine."""

from __future__ import annotations

from typing import Any

from kserve.errors import ServerNotLive
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from kserve_lmcache.server.http.register import ELSEWHERE
from kserve_lmcache.server.lifecycle import Lifecycle


class UnimplementedError(NotImplementedError):
    """What gRPC's clients get; KServe's interceptor looks for ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OffloadDataPlane(DataPlane):  # type: ignore[misc]
    """Health and metadata."""

    def __init__(self, model_registry: ModelRepository, lifecycle: Lifecycle) -> None:
        super().__init__(model_registry=model_registry)
        self.lifecycle = lifecycle

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """KServe's v2 metadata; text goes in and out by the OpenAI routes, so no tensors.

        Raises:
            ModelNotFound: answered with 404.
        """
        self.get_model_from_registry(model_name)
        return {"name": model_name, "platform": "vllm", "inputs": [], "outputs": []}

    async def model_ready(
        self, model_name: str, disable_predictor_health_check: bool = False
    ) -> bool:
        """False until a generation can succeed, while the server drains, and after a death."""
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready and self.lifecycle.takes_requests

    async def ready(self) -> bool:
        """As :meth:`model_ready`, of all models; of none it is false."""
        models = self.model_registry.get_models().values()
        healthy = [await model.healthy() for model in models]
        return bool(healthy) and all(healthy) and self.lifecycle.takes_requests

    async def live(self) -> dict[str, str]:
        """Alive while no restart is needed: until the engine dies.

        Raises:
            ServerNotLive: answered with 503.
        """
        models = self.model_registry.get_models().values()
        healthy = [await model.healthy() for model in models]
        if not self.lifecycle.alive or not healthy or not all(healthy):
            raise ServerNotLive(self.lifecycle.reason or "The engine is dead.")
        return {"status": "alive"}

    async def infer(self, *args: Any, **kwargs: Any) -> Any:
        """By gRPC; HTTP's routes say the same themselves.

        Raises:
            UnimplementedError: always; it says where to go.
        """
        raise UnimplementedError(ELSEWHERE)


class Repository(ModelRepository):  # type: ignore[misc]
    """The model under each name that it is called by, adapters that came later included."""

    def get_model(self, name: str) -> Any:
        """The model; ``None`` when nothing is called so."""
        found = super().get_model(name)
        if found is not None:
            return found
        for model in self.get_models().values():
            serving = getattr(model, "openai_serving_models", None)
            if serving is not None and name in serving.lora_requests:
                return model
        return None


class NoRepositoryExtension(ModelRepositoryExtension):  # type: ignore[misc]
    """Loading and unloading by gRPC, which is not asked for."""

    async def load(self, model_name: str) -> None:
        """Refuse.

        Raises:
            UnimplementedError: always.
        """
        raise UnimplementedError("Models are loaded by --enable-routes=repository alone")

    async def unload(self, model_name: str) -> None:
        """Refuse.

        Raises:
            UnimplementedError: always.
        """
        raise UnimplementedError("Models are unloaded by --enable-routes=repository alone")
