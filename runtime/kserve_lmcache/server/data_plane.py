"""KServe's data plane and repository for a vLLM engine."""

from __future__ import annotations

from typing import Any

from kserve.errors import ServerNotLive
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension

from kserve_lmcache.server.http.register import TENSORS_UNSUPPORTED
from kserve_lmcache.server.lifecycle import Lifecycle


class UnimplementedError(NotImplementedError):
    """The error of a gRPC call that is not supported. KServe's interceptor reads ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OffloadDataPlane(DataPlane):  # type: ignore[misc]
    """Health and metadata."""

    def __init__(self, model_registry: ModelRepository, lifecycle: Lifecycle) -> None:
        super().__init__(model_registry=model_registry)
        self.lifecycle = lifecycle

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """KServe's v2 metadata, without tensors: the model takes and returns text.

        Raises:
            ModelNotFound: no model has this name.
        """
        self.get_model_from_registry(model_name)
        return {"name": model_name, "platform": "vllm", "inputs": [], "outputs": []}

    async def model_ready(
        self, model_name: str, disable_predictor_health_check: bool = False
    ) -> bool:
        """Whether requests of the model should be sent here."""
        ready: bool = await super().model_ready(model_name, disable_predictor_health_check)
        return ready and self.lifecycle.is_ready

    async def ready(self) -> bool:
        """Whether requests should be sent here; false when there is no model, too."""
        models = self.model_registry.get_models().values()
        healthy = [await model.healthy() for model in models]
        return bool(healthy) and all(healthy) and self.lifecycle.is_ready

    async def live(self) -> dict[str, str]:
        """Report that the server is alive, which it is until the engine dies.

        Raises:
            ServerNotLive: the engine is dead.
        """
        models = self.model_registry.get_models().values()
        healthy = [await model.healthy() for model in models]
        if not self.lifecycle.alive or not healthy or not all(healthy):
            raise ServerNotLive(self.lifecycle.reason or "The engine is dead.")
        return {"status": "alive"}

    async def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse inference by gRPC; the HTTP routes refuse it themselves.

        Raises:
            UnimplementedError: always, with the routes that serve text.
        """
        raise UnimplementedError(TENSORS_UNSUPPORTED)


class Repository(ModelRepository):  # type: ignore[misc]
    """The model by each of its names, including adapters that were loaded later."""

    def get_model(self, name: str) -> Any:
        """The model; ``None`` for an unknown name."""
        found = super().get_model(name)
        if found is not None:
            return found
        for model in self.get_models().values():
            serving = getattr(model, "openai_serving_models", None)
            if serving is not None and name in serving.lora_requests:
                return model
        return None


class NoRepositoryExtension(ModelRepositoryExtension):  # type: ignore[misc]
    """Refuses loading and unloading of models by gRPC."""

    async def load(self, model_name: str) -> None:
        """Refuse.

        Raises:
            UnimplementedError: always.
        """
        raise UnimplementedError("Loading models needs --enable-routes=repository")

    async def unload(self, model_name: str) -> None:
        """Refuse.

        Raises:
            UnimplementedError: always.
        """
        raise UnimplementedError("Unloading models needs --enable-routes=repository")
