"""A base class with the members of ``huggingfaceserver.vllm.vllm_model.VLLMModel`` of KServe."""

from __future__ import annotations

from argparse import Namespace
from http import HTTPStatus
from typing import Any

from fastapi import Request
from kserve.protocol.rest.openai import OpenAIEncoderModel, OpenAIGenerativeModel
from kserve.protocol.rest.openai.errors import create_error_response

from kserve_lmcache.compat.vllm import ErrorResponse, validate_parsed_serve_args


class VLLMModel(OpenAIEncoderModel, OpenAIGenerativeModel):  # type: ignore[misc]
    """A model of KServe's server whose requests go to vLLM's OpenAI handlers.

    The subclass's ``start_engine`` sets ``engine_client`` and the handlers.
    """

    engine_client: Any = None
    openai_serving_models: Any = None
    openai_serving_completion: Any = None
    openai_serving_chat: Any = None
    openai_serving_embedding: Any = None
    serving_reranking: Any = None

    def __init__(self, model_name: str, args: Namespace, request_logger: Any = None) -> None:
        super().__init__(model_name)
        validate_parsed_serve_args(_vllm_only(args))
        self.args = args
        self.request_logger = request_logger
        self.model_name = model_name

    def load(self) -> bool:
        """Mark that the model has an engine, which starts with the server."""
        self.engine = True
        return False

    def start(self) -> None:
        """Do nothing before the engine starts."""

    def stop_engine(self) -> None:
        """End the engine's processes."""
        self.ready = False
        if self.engine_client is not None:
            self.engine_client.shutdown()

    async def create_completion(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/completions``."""
        if self.openai_serving_completion is None:
            return _unsupported("Completions")
        return _convert(
            await self.openai_serving_completion.create_completion(request, raw_request)
        )

    async def create_chat_completion(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/chat/completions``."""
        if self.openai_serving_chat is None:
            return _unsupported("Chat Completions")
        return _convert(await self.openai_serving_chat.create_chat_completion(request, raw_request))

    async def create_embedding(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/embeddings``."""
        if self.openai_serving_embedding is None:
            return _unsupported("Embeddings")
        return _convert(await self.openai_serving_embedding(request, raw_request))

    async def create_rerank(
        self, request: Any, raw_request: Request | None = None, context: Any = None
    ) -> Any:
        """``/v1/rerank``."""
        if self.serving_reranking is None:
            return _unsupported("Rerank")
        return _convert(await self.serving_reranking(request, raw_request))


def _vllm_only(args: Namespace) -> Namespace:
    """``args`` without the one that means another thing to vLLM.

    ``grpc_port`` is the port of KServe's gRPC server. vLLM 0.32 has a flag of the same name, which
    it refuses unless a frontend of its own serves.
    """
    return Namespace(**{name: value for name, value in vars(args).items() if name != "grpc_port"})


def _unsupported(api: str) -> Any:
    return create_error_response(
        message=f"The model does not support {api} API", status_code=HTTPStatus.BAD_REQUEST
    )


def _convert(response: Any) -> Any:
    """vLLM's response. An error is converted to KServe's type, which KServe's routes expect."""
    if not isinstance(response, ErrorResponse):
        return response
    error = response.error
    return create_error_response(
        message=error.message,
        err_type=error.type,
        param=error.param or "",
        status_code=HTTPStatus(int(error.code)),
    )
